//! Mixed traffic for as long as you like, and every packet accounted for.
//!
//! ```text
//! cargo run --release --example soak -- --packets 1000000
//! ```
//!
//! It needs no firewall tool and changes nothing on the host: it moves into a network namespace of
//! its own, as root or, where the host permits user namespaces, as an ordinary user (up to Linux
//! 7.1, because later kernels take edited packets back from root only; and slower, because the host
//! limits the buffers of ordinary users).
//!
//! Each datagram carries its number, and everything else follows from that: how long it is, what it
//! contains, what must become of it, and what must arrive. So whoever meets it, on its way or at
//! its end, can tell whether it is right, and little has to be remembered. The exit code is 0 if
//! every packet was sent, judged and received as it must, the library and the kernel have counted
//! the same, memory has not grown, and no descriptor or thread was ever too many or is left; 1 for
//! any difference; 2 for arguments that make no sense.
//!
//! - `plan`: what becomes of a datagram, by its number.
//! - `judge`, `holder`: the program under the queues, and who judges retained packets.
//! - `sender`, `receiver`: the traffic; `flight`: what is on its way between them.
//! - `streams`: TCP, whose super-packets pass the queues too.
//! - `watch`: memory, descriptors, threads, and what the kernel has counted as lost.
//! - `run` puts all of this together; `report` compares and prints.

mod arguments;
mod flight;
mod holder;
mod judge;
mod plan;
mod receiver;
mod report;
mod run;
mod sender;
mod streams;
mod trouble;
mod watch;

use std::env;
use std::process::ExitCode;

use crate::arguments::{Arguments, USAGE};

fn main() -> ExitCode {
    let arguments = match Arguments::read(env::args_os().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("soak: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run::run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}
