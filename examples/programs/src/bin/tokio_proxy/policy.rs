//! The server that decides: one TCP connection for all questions, answered in any order.
//!
//! A question is a line `NUMBER SOURCE DESTINATION`, an answer a line `NUMBER accept` or
//! `NUMBER drop`. Answers that nobody waits for any more are passed over; whatever else the server
//! says ends the connection, and the next question makes a new one.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use netfilterqueue_programs::tell;
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

/// After a failed attempt nobody tries to connect for this long.
const PAUSE: Duration = Duration::from_millis(100);

/// Longest line that a server may send.
const LINE_MAX: u64 = 64;

/// What a server says of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Accept,
    Drop,
}

/// Where questions are asked.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    questions: mpsc::Sender<Question>,
}

/// How to reach the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// How long connecting and sending may take.
    pub(crate) patience: Duration,
    /// Mark of our own packets, by which the rules know them.
    pub(crate) mark: u32,
    /// Most questions that are open at a time.
    pub(crate) open_max: usize,
}

#[derive(Debug)]
struct Question {
    source: SocketAddr,
    destination: SocketAddr,
    answer: oneshot::Sender<Answer>,
}

type Open = HashMap<u64, oneshot::Sender<Answer>>;

impl Policy {
    /// Starts the task that talks to the server; it ends with the last clone of this.
    pub(crate) fn start(server: Server) -> Self {
        let (questions, asked) = mpsc::channel(server.open_max);
        tokio::spawn(serve(server, asked));
        Self { questions }
    }

    /// Asks about a connection. `None` if the server cannot be reached or breaks off; waits
    /// without an end if it does not answer.
    pub(crate) async fn ask(&self, source: SocketAddr, destination: SocketAddr) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question { source, destination, answer }).await.ok()?;
        answered.await.ok()
    }
}

/// Connects whenever there is a question and no connection.
async fn serve(server: Server, mut questions: mpsc::Receiver<Question>) {
    while let Some(first) = questions.recv().await {
        let error = match timeout(server.patience, connect(server)).await {
            Ok(Ok(stream)) => match converse(server, stream, first, &mut questions).await {
                Ok(()) => return,
                Err(error) => error,
            },
            Ok(Err(error)) => {
                drop(first);
                error
            }
            Err(_) => {
                drop(first);
                io::ErrorKind::TimedOut.into()
            }
        };
        tell(format_args!("policy server {}: {error}", server.address));
        // Those that have come meanwhile have not been asked, and must not wait for the pause.
        let pause = sleep(PAUSE);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                question = questions.recv() => if question.is_none() { return },
            }
        }
    }
}

async fn connect(server: Server) -> io::Result<TcpStream> {
    let socket = if server.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    SockRef::from(&socket).set_mark(server.mark)?;
    let stream = socket.connect(server.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks and listens until nobody asks any more, or something goes wrong; then all open questions
/// are without an answer.
async fn converse(
    server: Server,
    stream: TcpStream,
    first: Question,
    questions: &mut mpsc::Receiver<Question>,
) -> io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    let mut open = Open::new();
    let mut numbers = 0..;
    let mut line = Vec::new();
    send(server, &mut to, first, &mut numbers, &mut open).await?;
    loop {
        tokio::select! {
            question = questions.recv() => match question {
                Some(question) => send(server, &mut to, question, &mut numbers, &mut open).await?,
                None => return Ok(()),
            },
            read = read_line(&mut from, &mut line) => {
                read?;
                let (number, answer) = parse(&line).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "it answers what was not asked")
                })?;
                line.clear();
                if let Some(waiting) = open.remove(&number) {
                    // Nobody may be waiting any more.
                    let _ = waiting.send(answer);
                }
            }
        }
    }
}

async fn send(
    server: Server,
    to: &mut OwnedWriteHalf,
    Question { source, destination, answer }: Question,
    numbers: &mut std::ops::RangeFrom<u64>,
    open: &mut Open,
) -> io::Result<()> {
    if open.len() >= server.open_max * 2 {
        // A server that answers nothing: those who asked have given up.
        open.retain(|_, waiting| !waiting.is_closed());
    }
    let number = numbers.next().unwrap_or_default();
    open.insert(number, answer);
    let line = format!("{number} {source} {destination}\n");
    timeout(server.patience, to.write_all(line.as_bytes())).await?
}

/// Reads up to the end of a line. Cancel safe: what was read is in `line`.
async fn read_line(from: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let bytes = from.fill_buf().await?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        line.extend_from_slice(&bytes[..taken]);
        from.consume(taken);
        if line.len() as u64 > LINE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its line is too long"));
        }
        if end.is_some() {
            return Ok(());
        }
    }
}

fn parse(line: &[u8]) -> Option<(u64, Answer)> {
    let line = str::from_utf8(line).ok()?.trim_end();
    let (number, answer) = line.split_once(' ')?;
    let answer = match answer {
        "accept" => Answer::Accept,
        "drop" => Answer::Drop,
        _ => return None,
    };
    Some((number.parse().ok()?, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_lines() {
        assert_eq!(parse(b"7 accept\n"), Some((7, Answer::Accept)));
        assert_eq!(parse(b"0 drop\r\n"), Some((0, Answer::Drop)));
        for line in
            [&b""[..], b"\n", b"7\n", b"7 maybe\n", b"x drop\n", b"\xff drop\n", b"-1 drop\n"]
        {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(line: Vec<u8>) {
            let _ = parse(&line);
        }
    }
}
