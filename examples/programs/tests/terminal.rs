//! A program in a pseudo-terminal: what it shows, keys, and how it leaves the terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{Termios, tcgetattr};
use rustix::termios::{Winsize, tcsetwinsize};

const SIZE: (u16, u16) = (24, 120);
const SOON: Duration = Duration::from_secs(10);

/// A running program with a terminal. It is killed if the test fails.
pub struct Terminal {
    child: Child,
    keys: Option<File>,
    screen: Arc<Mutex<vt100::Parser>>,
    is_hung_up: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    /// Keeps the terminal in being when the program has ended.
    inner: File,
    before: Termios,
}

impl Terminal {
    /// Starts a program whose standard input, output and error are a terminal.
    pub fn start(mut command: Command) -> Self {
        let (outer, own) = open().expect("a terminal");
        let inner = || own.try_clone().expect("a descriptor");
        let before = tcgetattr(&own).expect("its settings");
        command.stdin(inner()).stdout(inner()).stderr(inner());
        // What is known of a plain terminal, wherever the test is run.
        let child = command.env("TERM", "xterm").spawn().expect("the program starts");
        // Its copies of the descriptors would keep the terminal in use.
        drop(command);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(SIZE.0, SIZE.1, 0)));
        let is_hung_up = Arc::new(AtomicBool::new(false));
        let output = outer.try_clone().expect("a descriptor");
        let reader = {
            let (screen, is_hung_up) = (Arc::clone(&screen), Arc::clone(&is_hung_up));
            thread::spawn(move || read(output, &screen, &is_hung_up))
        };
        Self {
            child,
            keys: Some(outer),
            screen,
            is_hung_up,
            reader: Some(reader),
            inner: own,
            before,
        }
    }

    /// What is to be seen.
    pub fn contents(&self) -> String {
        self.screen.lock().expect("the reader lives").screen().contents()
    }

    /// Waits until a text is to be seen.
    pub fn wait_for(&self, text: &str) {
        self.wait_until(text, |terminal| terminal.contents().contains(text));
    }

    /// Waits until something is so, or fails with what is to be seen.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + SOON;
        while !is_so(self) {
            assert!(Instant::now() < until, "not {what:?}:\n{}", self.contents());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn press(&mut self, keys: &[u8]) {
        self.keys.as_mut().expect("not hung up").write_all(keys).expect("pressed");
    }

    /// Makes it larger or smaller, as a window. The program is to be told by the kernel.
    #[allow(dead_code, reason = "only live tests do")]
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        self.screen.lock().expect("the reader lives").screen_mut().set_size(rows, columns);
        tcsetwinsize(&self.inner, size).expect("resized");
    }

    /// The process id of the program.
    #[allow(dead_code, reason = "only live tests send signals")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Closes the terminal, as a window is closed.
    #[allow(dead_code, reason = "only live tests do")]
    pub fn hang_up(&mut self) {
        self.is_hung_up.store(true, Ordering::Release);
        self.reader.take().expect("once").join().expect("read");
        self.keys = None;
    }

    /// Waits for the program's end.
    pub fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.contents());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Keys come one by one, and the screen is not that of the shell.
    pub fn is_taken_over(&self) -> bool {
        let screen = self.screen.lock().expect("the reader lives");
        screen.screen().alternate_screen() && self.settings() != self.before
    }

    /// Waits until everything that was written has been read, and looks whether the terminal is as
    /// the program has found it.
    pub fn is_as_before(&self) -> bool {
        let is = |terminal: &Self| {
            let screen = terminal.screen.lock().expect("the reader lives");
            !screen.screen().alternate_screen()
                && !screen.screen().hide_cursor()
                && terminal.settings() == terminal.before
        };
        let until = Instant::now() + Duration::from_secs(2);
        while !is(self) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        is(self)
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.inner).expect("its settings")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.is_hung_up.store(true, Ordering::Release);
    }
}

fn read(mut output: File, screen: &Mutex<vt100::Parser>, is_hung_up: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !is_hung_up.load(Ordering::Acquire) {
        let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(20_u8)).is_ok_and(|ready| ready > 0) {
            match output.read(&mut buffer) {
                Ok(len) if len > 0 => {
                    screen.lock().expect("nobody panics").process(&buffer[..len]);
                }
                _ => return,
            }
        }
    }
}

/// Both ends of a terminal. No other program inherits them (`openpty` does not see to that): it
/// would keep a terminal that is closed.
fn open() -> io::Result<(File, File)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let outer: PtyMaster = posix_openpt(flags)?;
    grantpt(&outer)?;
    unlockpt(&outer)?;
    let mut options = File::options();
    options.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits());
    let inner = options.open(ptsname_r(&outer)?)?;
    let (rows, columns) = SIZE;
    tcsetwinsize(&inner, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    Ok((OwnedFd::from(outer).into(), inner))
}
