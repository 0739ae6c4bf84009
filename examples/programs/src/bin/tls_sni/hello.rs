//! The client hello with which a TLS connection begins.

use tls_parser::{
    TlsExtension, TlsRecordType, parse_tls_extension_sni_content, parse_tls_extension_unknown,
    parse_tls_handshake_client_hello, parse_tls_record_header,
};

/// Longest client hello that is waited for; with post-quantum keys they have about 2 KiB.
pub(crate) const HELLO_MAX: usize = 16 * 1024;

/// Longest start of a stream that can hold one, however it is cut into records: at worst they have
/// a byte each.
pub(crate) const STREAM_MAX: usize = HELLO_MAX * 2;

const RECORD_HEADER_LEN: usize = 5;
const HANDSHAKE_HEADER_LEN: usize = 4;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// What the start of a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// So far that of a client hello.
    Incomplete,
    /// A client hello.
    Hello(Hello),
    /// Something else.
    NotTls,
    /// A client hello that is too long, or that breaks the rules of its format.
    Unreadable,
}

/// What matters of a client hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The server's name, as far as it is told.
    pub(crate) name: Option<String>,
    /// There is an encrypted client hello within: `name` is then that of a server in front, if the
    /// encryption is no sham, as browsers send it to all servers.
    pub(crate) has_inner: bool,
}

/// Reads the start of a stream.
pub(crate) fn read(stream: &[u8]) -> Start {
    let mut message = Vec::new();
    let mut rest = stream;
    loop {
        match body_len(&message) {
            Err(start) => return start,
            Ok(Some(len)) if message.len() >= HANDSHAKE_HEADER_LEN + len => {
                let body = message.get(HANDSHAKE_HEADER_LEN..HANDSHAKE_HEADER_LEN + len);
                return body.and_then(hello).map_or(Start::Unreadable, Start::Hello);
            }
            Ok(_) => {}
        }
        if rest.is_empty() {
            return Start::Incomplete;
        }
        let is_handshake = rest[0] == TlsRecordType::Handshake.0;
        if !is_handshake || rest.get(1).is_some_and(|&major| major != 3) {
            return Start::NotTls;
        }
        let Some((header, body)) = rest.split_at_checked(RECORD_HEADER_LEN) else {
            return Start::Incomplete;
        };
        let Ok((_, header)) = parse_tls_record_header(header) else { return Start::NotTls };
        let len = usize::from(header.len);
        if len == 0 {
            return Start::Unreadable;
        }
        let (piece, behind) = body.split_at_checked(len).unwrap_or((body, &[]));
        message.extend_from_slice(piece);
        if piece.len() < len
            && body_len(&message).is_ok_and(|known| {
                known.is_none_or(|known| message.len() < known + HANDSHAKE_HEADER_LEN)
            })
        {
            return Start::Incomplete;
        }
        rest = behind;
    }
}

/// How long the message's body is, once that is known, if the message is a client hello.
fn body_len(message: &[u8]) -> Result<Option<usize>, Start> {
    match *message {
        [kind, ..] if kind != CLIENT_HELLO => Err(Start::NotTls),
        [_, a, b, c, ..] => match u32::from_be_bytes([0, a, b, c]) as usize {
            len if len > HELLO_MAX => Err(Start::Unreadable),
            len => Ok(Some(len)),
        },
        _ => Ok(None),
    }
}

fn hello(body: &[u8]) -> Option<Hello> {
    let (_, hello) = parse_tls_handshake_client_hello(body).ok()?;
    let mut found = Hello { name: None, has_inner: false };
    // One by one, because an extension that the crate cannot read must not hide those behind it.
    let mut rest = hello.ext.unwrap_or_default();
    while !rest.is_empty() {
        let (behind, extension) = parse_tls_extension_unknown(rest).ok()?;
        let TlsExtension::Unknown(kind, data) = extension else { return None };
        match kind.0 {
            SERVER_NAME if found.name.is_none() => found.name = server_name(data)?,
            ENCRYPTED_CLIENT_HELLO => found.has_inner = true,
            _ => {}
        }
        rest = behind;
    }
    Some(found)
}

/// The first name of the list that is a host's; `Some(None)` without one.
fn server_name(data: &[u8]) -> Option<Option<String>> {
    let (_, TlsExtension::SNI(names)) = parse_tls_extension_sni_content(data).ok()? else {
        return None;
    };
    let host = names.iter().find(|(kind, _)| kind.0 == 0);
    Some(host.map(|(_, name)| String::from_utf8_lossy(name).into_owned()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn with_len(len_bytes: usize, data: &[u8]) -> Vec<u8> {
        let len = u32::try_from(data.len()).expect("short").to_be_bytes();
        [&len[4 - len_bytes..], data].concat()
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &with_len(2, data)].concat()
    }

    /// A handshake message with these extensions.
    fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(with_len(1, &[]));
        body.extend(with_len(2, &[0x13, 1]));
        body.extend(with_len(1, &[0]));
        body.extend(with_len(2, &extensions.concat()));
        [&[1][..], &with_len(3, &body)].concat()
    }

    /// Cuts a message into records of this length.
    fn records(message: &[u8], len: usize) -> Vec<u8> {
        message
            .chunks(len)
            .flat_map(|piece| [&[22, 3, 1][..], &with_len(2, piece)].concat())
            .collect()
    }

    fn sni(name: &str) -> Vec<u8> {
        extension(0, &with_len(2, &[&[0][..], &with_len(2, name.as_bytes())].concat()))
    }

    /// The stream that asks for a name.
    pub(crate) fn stream_for(name: &str) -> Vec<u8> {
        // An extension before it that the crate takes for malformed.
        records(&message(&[extension(23, b"not empty"), sni(name)]), HELLO_MAX)
    }

    fn named(name: &str) -> Start {
        Start::Hello(Hello { name: Some(name.to_owned()), has_inner: false })
    }

    #[test]
    fn the_name_is_found_whatever_comes_before_it() {
        assert_eq!(read(&stream_for("example.org")), named("example.org"));
        // What comes behind in the stream does not matter.
        assert_eq!(read(&[&stream_for("example.org")[..], b"more"].concat()), named("example.org"));
    }

    #[test]
    fn every_start_is_incomplete_in_any_records() {
        let message = message(&[sni("example.org")]);
        for len in [1, 3, 4, 5, 50, 1000] {
            let stream = records(&message, len);
            for cut in 0..stream.len() {
                assert_eq!(read(&stream[..cut]), Start::Incomplete, "{len} {cut}");
            }
            assert_eq!(read(&stream), named("example.org"), "{len}");
        }
    }

    #[test]
    fn without_a_name_and_with_an_inner_hello() {
        let nameless = Hello { name: None, has_inner: false };
        assert_eq!(read(&records(&message(&[]), 999)), Start::Hello(nameless.clone()));
        let empty_list = records(&message(&[extension(0, &[])]), 999);
        assert_eq!(read(&empty_list), Start::Hello(nameless));
        let inner = records(&message(&[extension(0xfe0d, b"x"), sni("front.test")]), 999);
        let expected = Hello { name: Some("front.test".to_owned()), has_inner: true };
        assert_eq!(read(&inner), Start::Hello(expected));
    }

    #[test]
    fn what_is_no_hello() {
        for stream in
            [&b"GET / HTTP/1.1"[..], b"\x17\x03\x03", b"\x16\x02", b"\x16\x03\x01\0\x05\x02"]
        {
            assert_eq!(read(stream), Start::NotTls, "{stream:?}");
        }
        let mut long = stream_for("example.org");
        long[6..9].fill(0xff);
        assert_eq!(read(&long), Start::Unreadable);
        assert_eq!(read(b"\x16\x03\x01\0\0"), Start::Unreadable);
        let mut broken = stream_for("example.org");
        broken[5 + 4 + 34] = 0xff; // the session's length
        assert_eq!(read(&broken), Start::Unreadable);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes: Vec<u8>, at: usize, to: u8) {
            let _ = read(&bytes);
            bytes.splice(..0, [22, 3, 1, 1, 0, 1, 0, 0]);
            let _ = read(&bytes);
            let mut damaged = stream_for("example.org");
            let at = at % damaged.len();
            damaged[at] = to;
            let _ = read(&damaged);
        }
    }
}
