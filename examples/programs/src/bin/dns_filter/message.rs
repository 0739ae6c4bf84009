//! What a DNS answer is about, and the answer that says that there is no such name.

use domain::base::iana::Rcode;
use domain::base::{Message, MessageBuilder, Name, ParsedName, ToName};
use domain::rdata::{Cname, Dname};

/// A DNS message from a server.
#[derive(Debug)]
pub(crate) struct Answer<'m> {
    message: &'m Message<[u8]>,
    names: Vec<String>,
}

/// What a datagram from a DNS server's port is.
#[derive(Debug)]
pub(crate) enum Reading<'m> {
    /// An answer.
    Answer(Answer<'m>),
    /// A query: servers used to ask from their own port, and some still do.
    Query,
    /// Neither; no client can do anything with it.
    Unreadable,
}

impl<'m> Answer<'m> {
    /// Reads a message. Its question must be readable; of its records count those up to the first
    /// one that is not.
    pub(crate) fn read(datagram: &'m [u8]) -> Reading<'m> {
        let Ok(message) = Message::from_slice(datagram) else { return Reading::Unreadable };
        if !message.header().qr() {
            return Reading::Query;
        }
        let mut names = Vec::new();
        for question in message.question() {
            let Ok(question) = question else { return Reading::Unreadable };
            names.push(text(question.qname()));
        }
        for record in message.answer().into_iter().flatten().map_while(Result::ok) {
            // A name of the site's own may stand for that of a tracker.
            let alias = match record.to_record::<Cname<ParsedName<_>>>() {
                Ok(Some(record)) => Some(text(record.data().cname())),
                _ => match record.to_record::<Dname<ParsedName<_>>>() {
                    Ok(Some(record)) => Some(text(record.data().dname())),
                    _ => None,
                },
            };
            names.push(text(&record.owner()));
            names.extend(alias);
        }
        Reading::Answer(Self { message, names })
    }

    /// The name that was asked for, then those that the answer leads to. In the order of the
    /// message, with repetitions.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The answer to the same question that there is no such name. `None` if it does not fit, which
    /// takes more questions than anybody asks.
    pub(crate) fn no_such_name(&self) -> Option<Vec<u8>> {
        let asked = self.message.header();
        let builder = MessageBuilder::from_target(Vec::new()).ok()?;
        let mut builder = builder.start_answer(self.message, Rcode::NXDOMAIN).ok()?.additional();
        builder.header_mut().set_ra(asked.ra());
        builder.header_mut().set_cd(asked.cd());
        if let Some(opt) = self.message.opt() {
            // Without it a resolver would take the server for one that knows no extensions.
            builder
                .opt(|to| {
                    to.set_udp_payload_size(opt.udp_payload_size());
                    to.set_dnssec_ok(opt.dnssec_ok());
                    Ok(())
                })
                .ok()?;
        }
        Some(builder.finish())
    }
}

/// A name as text. A dot within a label is none between labels.
fn text(name: &impl ToName) -> String {
    let name: Name<Vec<u8>> = name.to_name();
    let labels = name.iter().filter(|label| !label.is_root());
    let labels: Vec<_> = labels
        .map(|label| String::from_utf8_lossy(label.as_slice()).replace('.', "\\046"))
        .collect();
    labels.join(".")
}

#[cfg(test)]
mod tests {
    use domain::base::{Rtype, Ttl};
    use domain::rdata::A;

    use super::*;

    fn answer_with_alias() -> Vec<u8> {
        let name = |text: &str| text.parse::<Name<Vec<u8>>>().expect("a name");
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(0x1234);
        builder.header_mut().set_qr(true);
        builder.header_mut().set_rd(true);
        builder.header_mut().set_ra(true);
        let mut builder = builder.question();
        builder.push((name("wWw.Example.org"), Rtype::from_int(65280))).expect("room");
        let mut builder = builder.answer();
        let alias = Cname::new(name("cdn.tracker.test"));
        builder.push((name("www.example.org"), Ttl::from_secs(60), alias)).expect("room");
        let address = A::from_octets(192, 0, 2, 1);
        builder.push((name("cdn.tracker.test"), Ttl::from_secs(60), address)).expect("room");
        let mut builder = builder.additional();
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(1232);
                Ok(())
            })
            .expect("room");
        builder.finish()
    }

    fn read(datagram: &[u8]) -> Answer<'_> {
        match Answer::read(datagram) {
            Reading::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_those_of_the_question_and_of_aliases() {
        let datagram = answer_with_alias();
        let answer = read(&datagram);
        let names: Vec<_> = answer.names().collect();
        let expected =
            ["wWw.Example.org", "www.example.org", "cdn.tracker.test", "cdn.tracker.test"];
        assert_eq!(names, expected);
    }

    #[test]
    fn the_other_answer_has_the_question_as_it_was_and_no_records() {
        let datagram = answer_with_alias();
        let reply = read(&datagram).no_such_name().expect("it fits");
        let reply = Message::from_slice(&reply).expect("a message");
        let header = reply.header();
        assert_eq!((header.id(), header.rcode()), (0x1234, Rcode::NXDOMAIN));
        assert!(header.qr() && header.rd() && header.ra() && !header.aa() && !header.tc());
        let counts = reply.header_counts();
        assert_eq!((counts.qdcount(), counts.ancount(), counts.nscount()), (1, 0, 0));
        let question = reply.sole_question().expect("one question");
        assert_eq!(text(question.qname()), "wWw.Example.org", "also its case");
        assert_eq!(question.qtype(), Rtype::from_int(65280), "also a type that is unknown");
        assert_eq!(reply.opt().expect("as in the answer").udp_payload_size(), 1232);
    }

    #[test]
    fn records_that_cannot_be_read_do_not_hide_the_question() {
        let datagram = answer_with_alias();
        let cut = &datagram[..datagram.len() - 20];
        assert_eq!(read(cut).names().next(), Some("wWw.Example.org"));
        assert!(read(cut).no_such_name().is_some());
    }

    #[test]
    fn what_is_no_answer() {
        let mut datagram = answer_with_alias();
        for len in 0..33 {
            assert!(matches!(Answer::read(&datagram[..len]), Reading::Unreadable), "{len}");
        }
        datagram[2] &= 0x7f;
        assert!(matches!(Answer::read(&datagram), Reading::Query));
    }

    #[test]
    fn names_that_point_in_circles_end() {
        let mut datagram = answer_with_alias();
        datagram[12..14].copy_from_slice(&[0xc0, 12]);
        assert!(matches!(Answer::read(&datagram), Reading::Unreadable));
    }

    #[test]
    fn a_dot_within_a_label_separates_nothing() {
        let mut datagram = answer_with_alias();
        datagram[17] = b'.';
        assert_eq!(read(&datagram).names().next(), Some("wWw.\\046xample.org"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            if let Reading::Answer(answer) = Answer::read(&bytes) {
                let _ = answer.no_such_name();
            }
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0_usize..100, to: u8) {
            let mut datagram = answer_with_alias();
            let at = at % datagram.len();
            datagram[at] = to;
            if let Reading::Answer(answer) = Answer::read(&datagram) {
                let _ = answer.no_such_name();
            }
        }
    }
}
