//! One case under callgrind, in a process of its own.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::COUNT;

/// Counting is turned on and off at the entry to these functions, and back at their end.
const TOGGLES: [&str; 3] = [
    "instructions::live::measured_*",
    "instructions::live::uncounted_*",
    "instructions::pure::measured_*",
];

/// What glibc copies bytes with depends on the processor, of which valgrind hides AVX-512 only.
/// Without these it is what every x86-64 has; a replaced packet takes 7 % more of its instructions.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX_Fast_Unaligned_Load,-AVX2,-ERMS,-SSSE3";

/// How many instructions the measured part of a case took.
pub(crate) fn count(name: &str) -> Result<u64, String> {
    let program = env::current_exe().map_err(|error| format!("finding this program: {error}"))?;
    let profile = profile(name);
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .args(TOGGLES.map(|function| format!("--toggle-collect={function}")))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(program)
        .args([COUNT, name])
        .env("GLIBC_TUNABLES", TUNABLES)
        .output()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => "there is no valgrind; it is in the package of that name".into(),
            _ => format!("starting valgrind: {error}"),
        })?;
    if !output.status.success() {
        return Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    total(&profile)
}

/// Where the profile of a case is left, for callgrind's own tools.
pub(crate) fn profile(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("callgrind.{name}"))
}

fn total(profile: &Path) -> Result<u64, String> {
    let text = fs::read_to_string(profile).map_err(|error| format!("its profile: {error}"))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    match total.and_then(|total| total.trim().parse().ok()) {
        // Were the functions renamed, or inlined?
        None | Some(0) => Err("callgrind has counted nothing".into()),
        Some(total) => Ok(total),
    }
}
