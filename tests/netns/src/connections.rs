//! What makes a namespace follow connections, translate their addresses and label packets: the few
//! `nf_tables` messages that `nft` would send.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook,
    Immediate, InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Register,
    RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::error::Error;
use crate::namespace::Namespace;

// linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h

const NFNL_SUBSYS_NFTABLES: u16 = 10;

const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_SREG: u16 = 4;
const NFT_CT_STATE: u32 = 0;
const NFT_CT_LABELS: u32 = 13;
const LABELS_LEN: usize = 16;

const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;

const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_SECMARK: u32 = 8;
const NFTA_SECMARK_CTX: u16 = 1;
const NFTA_OBJREF_IMM_TYPE: u16 = 1;
const NFTA_OBJREF_IMM_NAME: u16 = 2;

const NFPROTO_IPV4: u32 = 2;
const PRIORITY_EARLY: i32 = -150;
const PRIORITY_DESTINATION_NAT: i32 = -100;
const PRIORITY_SOURCE_NAT: i32 = 100;
const POLICY_ACCEPT: u32 = 1;

/// A mark that no packet has.
const UNHEARD_OF: u32 = 0xfedc_ba98;

const REGISTER: Register = Register::Reg1;

impl Namespace {
    /// Makes the kernel follow connections here (conntrack), which it does as soon as a rule may
    /// ask for their state. Lasts as long as the namespace.
    ///
    /// # Errors
    ///
    /// [`Error::System`] with `EOPNOTSUPP` or `ENOENT` if the kernel lacks `nf_tables` or `nft_ct`.
    pub fn track_connections(&self) -> Result<(), Error> {
        let state = ct(&[(NFTA_CT_DREG, Register::Reg1.into()), (NFTA_CT_KEY, NFT_CT_STATE)]);
        let rule = Rule::new(NetfilterProtoFamily::Inet, None, vec![state]);
        self.add_rule("follow", "following connections", rule)
    }

    /// Makes room for label bits in the entries of connections from now on, which the kernel does
    /// as soon as a rule may set them. Follows connections, too.
    ///
    /// # Errors
    ///
    /// As [`track_connections`](Self::track_connections), and the same where the kernel has no
    /// labels.
    pub fn label_connections(&self) -> Result<(), Error> {
        let load = |data| {
            let data = Immediate::Data(DataAttribute::Value(data));
            Expressions::Immediate(vec![Immediate::DestinationRegister(REGISTER), data])
        };
        let expressions = vec![
            Expressions::Meta(vec![Meta::DestinationRegister(REGISTER), Meta::Key(MetaKey::Mark)]),
            Expressions::Cmp(vec![
                Cmp::SourceRegister(REGISTER),
                Cmp::Op(Operator::Equal),
                Cmp::Data(DataAttribute::Value(UNHEARD_OF.to_ne_bytes().to_vec())),
            ]),
            load(vec![0; LABELS_LEN]),
            ct(&[(NFTA_CT_SREG, REGISTER.into()), (NFTA_CT_KEY, NFT_CT_LABELS)]),
        ];
        let rule = Rule::new(NetfilterProtoFamily::Inet, None, expressions);
        self.add_rule("label", "labelling connections", rule)
    }

    /// Translates the destination of all connections over IPv4 that begin here.
    ///
    /// # Errors
    ///
    /// As [`track_connections`](Self::track_connections), and the same where the kernel cannot
    /// translate.
    pub fn translate_destinations(&self, to: Ipv4Addr) -> Result<(), Error> {
        let chain = Chain {
            kind: "nat",
            hook: InetHookNumber::LocalOut,
            priority: PRIORITY_DESTINATION_NAT,
        };
        self.translate("destinations", chain, NFT_NAT_DNAT, to)
    }

    /// Translates the source of all connections over IPv4 that leave here.
    ///
    /// # Errors
    ///
    /// As [`translate_destinations`](Self::translate_destinations).
    pub fn translate_sources(&self, to: Ipv4Addr) -> Result<(), Error> {
        let chain =
            Chain { kind: "nat", hook: InetHookNumber::PostRouting, priority: PRIORITY_SOURCE_NAT };
        self.translate("sources", chain, NFT_NAT_SNAT, to)
    }

    /// Gives all packets that begin here a security context (`secmark`).
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `EOPNOTSUPP` or `ENOENT` where no security module labels packets,
    /// `EINVAL` if it does not know the context.
    pub fn label_packets(&self, context: &str) -> Result<(), Error> {
        const NAME: &str = "context";
        let text = |kind, text: &str| DefaultNla::new(kind, [text.as_bytes(), b"\0"].concat());
        let be32 = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
        let context = text(NFTA_SECMARK_CTX, context);
        let mut data = vec![0; context.buffer_len()];
        context.emit(&mut data);
        let object = vec![
            text(NFTA_OBJ_TABLE, NAME),
            text(NFTA_OBJ_NAME, NAME),
            be32(NFTA_OBJ_TYPE, NFT_OBJECT_SECMARK),
            DefaultNla::new(NFTA_OBJ_DATA | NLA_F_NESTED, data),
        ];
        let expressions = vec![Expressions::Other {
            expression_type: "objref".to_owned(),
            attributes: vec![
                be32(NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_SECMARK),
                text(NFTA_OBJREF_IMM_NAME, NAME),
            ],
        }];
        let chain =
            Chain { kind: "filter", hook: InetHookNumber::LocalOut, priority: PRIORITY_EARLY };
        let rule = Rule {
            object: Some(object),
            ..Rule::new(NetfilterProtoFamily::Inet, Some(chain), expressions)
        };
        self.add_rule(NAME, "labelling packets", rule)
    }

    fn translate(&self, name: &str, chain: Chain, kind: u32, to: Ipv4Addr) -> Result<(), Error> {
        let address = Immediate::Data(DataAttribute::Value(to.octets().to_vec()));
        let expressions = vec![
            Expressions::Immediate(vec![Immediate::DestinationRegister(REGISTER), address]),
            expression(
                "nat",
                &[
                    (NFTA_NAT_TYPE, kind),
                    (NFTA_NAT_FAMILY, NFPROTO_IPV4),
                    (NFTA_NAT_REG_ADDR_MIN, REGISTER.into()),
                ],
            ),
        ];
        let rule = Rule::new(NetfilterProtoFamily::IPv4, Some(chain), expressions);
        self.add_rule(name, &format!("translating {name} to {to}"), rule)
    }

    fn add_rule(&self, table: &str, operation: &str, rule: Rule) -> Result<(), Error> {
        self.try_run(|| rule.add(table))?.map_err(Error::of(operation))
    }
}

/// A base chain.
struct Chain {
    kind: &'static str,
    hook: InetHookNumber,
    priority: i32,
}

/// The only rule in a table of its own, in a chain without a hook if it is enough that it is there.
struct Rule {
    family: NetfilterProtoFamily,
    /// What the rule refers to.
    object: Option<Vec<DefaultNla>>,
    chain: Option<Chain>,
    expressions: Vec<Expressions>,
}

impl Rule {
    const fn new(
        family: NetfilterProtoFamily,
        chain: Option<Chain>,
        expressions: Vec<Expressions>,
    ) -> Self {
        Self { family, object: None, chain, expressions }
    }

    /// Sends the transaction and waits for the answer.
    fn add(self, table: &str) -> io::Result<()> {
        const CHAIN: &str = "only";
        let mut chain =
            vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(CHAIN.to_owned())];
        if let Some(Chain { kind, hook, priority }) = self.chain {
            chain.extend([
                ChainAttribute::Hook(vec![
                    Hook::Number(hook.into()),
                    Hook::Priority(priority.cast_unsigned()),
                ]),
                ChainAttribute::Policy(POLICY_ACCEPT),
                ChainAttribute::Type(kind.to_owned()),
            ]);
        }
        let table_attributes = vec![
            TableAttribute::Name(table.to_owned()),
            TableAttribute::Flags(TableFlags::empty()),
        ];
        let expressions: Vec<ListAttribute<ExpressionAttribute>> =
            self.expressions.into_iter().map(Into::into).collect();
        let rule = vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(CHAIN.to_owned()),
            RuleAttribute::Expressions(expressions),
        ];
        let create = NLM_F_CREATE;
        let table = NfTablesMessage::NewTable(TableMessage { attributes: table_attributes });
        let mut messages = vec![(create, table)];
        messages.extend(self.object.map(|object| (create, NfTablesMessage::NewObject(object))));
        messages.extend([
            (create, NfTablesMessage::NewChain(ChainMessage { attributes: chain })),
            (
                create | NLM_F_APPEND | NLM_F_ACK,
                NfTablesMessage::NewRule(RuleMessage { attributes: rule }),
            ),
        ]);
        transact(self.family, messages)
    }
}

fn ct(attributes: &[(u16, u32)]) -> Expressions {
    expression("ct", attributes)
}

/// An expression whose attributes are all be32.
fn expression(name: &str, attributes: &[(u16, u32)]) -> Expressions {
    let attribute =
        |&(kind, value): &(u16, u32)| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: attributes.iter().map(attribute).collect(),
    }
}

/// The last message must ask for an answer; the others only answer to say that they failed.
fn transact(family: NetfilterProtoFamily, messages: Vec<(u16, NfTablesMessage)>) -> io::Result<()> {
    let mut datagram = Vec::new();
    push(&mut datagram, 0, boundary(ControlMessage::BatchBegin));
    for (flags, message) in messages {
        push(
            &mut datagram,
            flags,
            NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message),
        );
    }
    push(&mut datagram, 0, boundary(ControlMessage::BatchEnd));
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let kernel = SocketAddr::new(0, 0);
    socket.send_to(&datagram, &kernel, 0)?;
    loop {
        let (answer, from) = socket.recv_from_full()?;
        if from.port_number() == kernel.port_number() {
            let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer);
            return match answer.map_err(io::Error::other)?.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
                _ => Ok(()),
            };
        }
    }
}

fn boundary(message: impl Into<NetfilterMessageInner>) -> NetfilterMessage {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
    NetfilterMessage::new(header, message)
}

fn push(datagram: &mut Vec<u8>, flags: u16, message: NetfilterMessage) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = datagram.len();
    datagram.resize(start + message.buffer_len(), 0);
    message.serialize(&mut datagram[start..]);
}
