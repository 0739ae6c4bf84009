//! The few requests of rtnetlink that wire namespaces up: what `ip link`, `ip address`, `ip
//! neighbor` and `ip route` send.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVlan, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage, State,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::net::if_::if_nametoindex;

pub(crate) type Message = RouteNetlinkMessage;

/// Makes something that must not exist yet.
pub(crate) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// The index of a link in the calling thread's namespace.
pub(crate) fn index(name: &str) -> io::Result<u32> {
    Ok(if_nametoindex(name)?)
}

/// Asks for a change in the calling thread's namespace and waits for the answer.
pub(crate) fn request(message: Message, flags: u16) -> io::Result<()> {
    exchange(message, flags | NLM_F_ACK).map(|_| ())
}

/// Whether a link can send: turned on, its carrier there and its queue attached.
pub(crate) fn is_ready(name: &str) -> io::Result<bool> {
    Ok(attributes(name)?.contains(&LinkAttribute::OperState(State::Up)))
}

/// The Ethernet address of a link.
pub(crate) fn link_address(name: &str) -> io::Result<[u8; 6]> {
    let address = attributes(name)?.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.try_into().ok(),
        _ => None,
    });
    address.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an Ethernet link"))
}

fn attributes(name: &str) -> io::Result<Vec<LinkAttribute>> {
    let message = Message::GetLink(link(index(name)?, Vec::new()));
    Ok(match exchange(message, 0)? {
        Some(Message::NewLink(link)) => link.attributes,
        _ => Vec::new(),
    })
}

/// The answer is a message, or the success of a request that asked for it.
fn exchange(message: Message, flags: u16) -> io::Result<Option<Message>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut datagram = vec![0; message.buffer_len()];
    message.serialize(&mut datagram);
    let kernel = SocketAddr::new(0, 0);
    socket.send_to(&datagram, &kernel, 0)?;
    loop {
        let (answer, from) = socket.recv_from_full()?;
        if from.port_number() != kernel.port_number() {
            continue;
        }
        return match NetlinkMessage::deserialize(&answer).map_err(io::Error::other)?.payload {
            NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(None),
        };
    }
}

/// A veth pair: `name` where the request is sent, its peer in the namespace of `other`.
pub(crate) fn veth(name: &str, other: &impl AsRawFd, other_name: &str) -> Message {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(other_name.to_owned()),
        LinkAttribute::NetNsFd(other.as_raw_fd()),
    ];
    new_link(name, InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(peer))), Vec::new())
}

pub(crate) fn bridge(name: &str) -> Message {
    new_link(name, InfoKind::Bridge, None, Vec::new())
}

/// A link for the tag `id` on the link with the index `parent`.
pub(crate) fn vlan(parent: u32, name: &str, id: u16) -> Message {
    let data = InfoData::Vlan(vec![InfoVlan::Id(id)]);
    new_link(name, InfoKind::Vlan, Some(data), vec![LinkAttribute::Link(parent)])
}

/// A tunnel over UDP to `remote`, port 4789.
pub(crate) fn vxlan(name: &str, id: u32, remote: Ipv4Addr) -> Message {
    let data =
        InfoData::Vxlan(vec![InfoVxlan::Id(id), InfoVxlan::Group(remote), InfoVxlan::Port(4789)]);
    new_link(name, InfoKind::Vxlan, Some(data), Vec::new())
}

pub(crate) fn deletion(index: u32) -> Message {
    Message::DelLink(link(index, Vec::new()))
}

pub(crate) fn master(index: u32, master: u32) -> Message {
    Message::SetLink(link(index, vec![LinkAttribute::Controller(master)]))
}

pub(crate) fn set_link_address(index: u32, address: [u8; 6]) -> Message {
    Message::SetLink(link(index, vec![LinkAttribute::Address(address.to_vec())]))
}

pub(crate) fn link_up(index: u32, up: bool) -> Message {
    let mut message = link(index, Vec::new());
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message.header.change_mask = LinkFlags::Up;
    Message::SetLink(message)
}

pub(crate) fn rename(index: u32, name: &str) -> Message {
    Message::SetLink(link(index, vec![LinkAttribute::IfName(name.to_owned())]))
}

pub(crate) fn mtu(index: u32, mtu: u32) -> Message {
    Message::SetLink(link(index, vec![LinkAttribute::Mtu(mtu)]))
}

pub(crate) fn address(index: u32, address: IpAddr, prefix: u8) -> Message {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if let IpAddr::V4(address) = address {
        let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let broadcast = Ipv4Addr::from(u32::from(address) | hosts);
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    Message::NewAddress(message)
}

pub(crate) fn route(destination: IpAddr, prefix: u8, via: IpAddr) -> Message {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(destination),
        destination_prefix_length: prefix,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes =
        vec![RouteAttribute::Destination(destination.into()), RouteAttribute::Gateway(via.into())];
    Message::NewRoute(message)
}

/// `address` is for good at the Ethernet address.
pub(crate) fn neighbor(index: u32, address: IpAddr, ethernet: [u8; 6]) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }),
        NeighbourAttribute::LinkLayerAddress(ethernet.to_vec()),
    ];
    Message::NewNeighbour(message)
}

fn new_link(
    name: &str,
    kind: InfoKind,
    data: Option<InfoData>,
    mut attributes: Vec<LinkAttribute>,
) -> Message {
    let info = [LinkInfo::Kind(kind)].into_iter().chain(data.map(LinkInfo::Data)).collect();
    attributes.extend([LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)]);
    Message::NewLink(link(0, attributes))
}

fn link(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
