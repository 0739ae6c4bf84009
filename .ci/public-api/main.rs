//! Prints the public API in a file of rustdoc's JSON, an item a line.

use std::process::ExitCode;

use public_api::{Builder, PublicApi};

/// Traits that no program can name in stable Rust; new ones come with new compilers.
const UNNAMEABLE: [&str; 3] = [
    " core::marker::Freeze for ",
    " core::marker::StructuralPartialEq for ",
    " core::marker::UnsafeUnpin for ",
];

fn read(path: &str) -> Result<PublicApi, public_api::Error> {
    // Blanket implementations say nothing about this crate. Auto traits stay: that a type is no longer
    // `Send` breaks programs, and no line of the source tells it.
    Builder::from_rustdoc_json(path).omit_blanket_impls(true).build()
}

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: netfilterqueue-public-api FILE.json");
        return ExitCode::from(2);
    };
    match read(&path) {
        Ok(api) => {
            let items = api.items().map(ToString::to_string);
            for item in items.filter(|item| !UNNAMEABLE.iter().any(|name| item.contains(name))) {
                println!("{item}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}
