//! The terminal, taken over and given back as it was.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::is_raw_mode_enabled;
use ratatui::layout::Size;

use crate::view::Picture;

/// The whole terminal, until this is dropped: also by an error or a panic.
#[derive(Debug)]
pub(crate) struct Screen {
    /// Until it is given back.
    terminal: Option<DefaultTerminal>,
    /// When it was filled.
    size: Size,
}

impl Screen {
    /// # Errors
    ///
    /// Where there is no terminal, it says what to do instead.
    pub(crate) fn open() -> io::Result<Self> {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(io::Error::other(
                "this is no terminal; --plain prints the table as lines, --once prints one",
            ));
        }
        // Its panic hook gives the terminal back before the panic is told.
        Ok(Self { terminal: Some(ratatui::try_init()?), size: Size::ZERO })
    }

    pub(crate) fn show(&mut self, picture: &Picture) -> io::Result<()> {
        let Some(terminal) = &mut self.terminal else { return Ok(()) };
        let filled = terminal.draw(|frame| frame.render_widget(picture, frame.area()))?;
        self.size = filled.area.as_size();
        Ok(())
    }

    /// Whether the terminal has another size than when it was filled.
    pub(crate) fn is_resized(&self) -> bool {
        let size = self.terminal.as_ref().and_then(|terminal| terminal.size().ok());
        size.is_some_and(|size| size != self.size)
    }

    /// The bytes of what has been pressed, if something has within a time. Read here, because
    /// crossterm forgets a key that is pressed while the size changes until another one is, and
    /// looks for keys for ever in a terminal that is gone.
    ///
    /// # Errors
    ///
    /// That the terminal is gone.
    pub(crate) fn keys(&self, within: Duration) -> io::Result<Vec<u8>> {
        let stdin = io::stdin();
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        let ready = match poll(&mut fds, PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX))
        {
            Ok(_) => fds[0].revents().unwrap_or(PollFlags::empty()),
            Err(Errno::EINTR) => PollFlags::empty(),
            Err(errno) => return Err(errno.into()),
        };
        if ready.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            return Err(io::Error::other("the terminal is gone"));
        }
        let mut bytes = vec![0; 256];
        let len = if ready.is_empty() { 0 } else { read(&stdin, &mut bytes)? };
        bytes.truncate(len);
        Ok(bytes)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(mut terminal) = self.terminal.take()
            && terminal.show_cursor().is_err()
        {
            // It would try once more, and print that to a terminal that is gone, which panics.
            std::mem::forget(terminal);
        }
        give_back();
    }
}

/// Gives the terminal back, unless it has been: a second time would write over what has been said
/// since, such as a panic's message. Where it is gone there is nothing to give back.
pub(crate) fn give_back() {
    if is_raw_mode_enabled().unwrap_or(true) {
        let _ = ratatui::try_restore();
    }
    let _ = execute!(io::stdout(), Show);
}

#[cfg(test)]
#[path = "../../../tests/terminal.rs"]
#[allow(unreachable_pub, reason = "the tests of all programs have it, too")]
mod terminal;

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::terminal::Terminal;
    use super::*;
    use crate::view::tests::picture;

    /// Says to this test, run once more with a terminal, what it is to do with that.
    const TASK: &str = "MONITOR_SCREEN_TASK";

    #[test]
    fn the_terminal_is_given_back() {
        match env::var(TASK).as_deref() {
            Err(_) => {}
            Ok("return") => return show_for_a_while(),
            Ok("panic") => {
                show_for_a_while_and(|| panic!("on purpose"));
                return;
            }
            Ok(other) => panic!("{other}"),
        }
        for (task, ends_well) in [("return", true), ("panic", false)] {
            let mut command = Command::new(env::current_exe().unwrap());
            let this = "screen::tests::the_terminal_is_given_back";
            command.args([this, "--exact", "--nocapture"]).env(TASK, task);
            // Which would fill the screen.
            command.env("RUST_BACKTRACE", "0");
            let mut terminal = Terminal::start(command);
            terminal.wait_for("queue 1 at output");
            assert!(terminal.is_taken_over(), "{task}");
            terminal.press(b"\r");
            let status = terminal.ended();
            assert_eq!(status.success(), ends_well, "{task}");
            assert!(terminal.is_as_before(), "{task}");
            if !ends_well {
                terminal.wait_for("on purpose");
            }
        }
    }

    fn show_for_a_while() {
        show_for_a_while_and(|| {});
    }

    fn show_for_a_while_and(end: impl FnOnce()) {
        let mut screen = Screen::open().unwrap();
        screen.show(&picture(3)).unwrap();
        while screen.keys(Duration::from_secs(60)).unwrap().is_empty() {}
        end();
    }
}
