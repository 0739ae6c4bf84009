//! One case under callgrind, in a process of its own.

use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

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

/// How long a count may take, which is mostly a second or two: a case that waits for packets which
/// do not come would wait for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many instructions the measured part of a case took.
pub(crate) fn count(name: &str) -> Result<u64, String> {
    let program = env::current_exe().map_err(|error| format!("finding this program: {error}"))?;
    let profile = profile(name);
    let mut child = Command::new("valgrind")
        .arg("--tool=callgrind")
        .args(TOGGLES.map(|function| format!("--toggle-collect={function}")))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(program)
        .args([COUNT, name])
        .env("GLIBC_TUNABLES", TUNABLES)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => "there is no valgrind; it is in the package of that name".into(),
            _ => format!("starting valgrind: {error}"),
        })?;
    // Read meanwhile, or it would wait for room in the pipe.
    let mut stderr = child.stderr.take().expect("a pipe was asked for");
    let said = thread::spawn(move || {
        let mut said = Vec::new();
        stderr.read_to_end(&mut said).map(|_| said).unwrap_or_default()
    });
    let status = wait(&mut child)?;
    let said = said.join().unwrap_or_default();
    if !status.success() {
        return Err(format!("{status}\n{}", String::from_utf8_lossy(&said)));
    }
    total(&profile)
}

fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(10)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no end after {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(format!("waiting for valgrind: {error}")),
        }
    }
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
