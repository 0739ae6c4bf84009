//! The kernel's numbers under the kernel's names.
//!
//! Each block names the header of Linux's `include/uapi/linux/` that it comes from; the values are
//! part of the kernel's ABI and never change.

/// Constants of the netlink header, from `netlink.h`, as netlink-packet-core defines them.
pub use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_REQUEST, NLMSG_ERROR,
};

// netlink.h

/// Attribute flag: the value is itself a list of attributes.
pub const NLA_F_NESTED: u16 = 1 << 15;
/// Attribute flag: the value is in network byte order. `nfnetlink_queue` never sets it, although its
/// values are.
pub const NLA_F_NET_BYTEORDER: u16 = 1 << 14;
/// The attribute's number: what remains without the two flags.
pub const NLA_TYPE_MASK: u16 = !(NLA_F_NESTED | NLA_F_NET_BYTEORDER);
/// Extended acknowledgement: a NUL-terminated text. Since 4.12.
pub const NLMSGERR_ATTR_MSG: u16 = 1;
/// Extended acknowledgement: offset of the attribute at fault, u32 in host order. Since 4.12.
pub const NLMSGERR_ATTR_OFFS: u16 = 2;

// netfilter/nfnetlink.h

/// Subsystem of `nfnetlink_queue`, the high byte of a message type.
pub const NFNL_SUBSYS_QUEUE: u8 = 3;
/// The only version of `struct nfgenmsg`.
pub const NFNETLINK_V0: u8 = 0;

// netfilter/nfnetlink_queue.h: enum nfqnl_msg_types, with the subsystem in the high byte

/// A queued packet, from the kernel.
pub const NFQNL_MSG_PACKET: u16 = (NFNL_SUBSYS_QUEUE as u16) << 8;
/// The verdict on one packet, to the kernel.
pub const NFQNL_MSG_VERDICT: u16 = NFQNL_MSG_PACKET | 1;
/// A change of a queue's configuration, to the kernel.
pub const NFQNL_MSG_CONFIG: u16 = NFQNL_MSG_PACKET | 2;
/// One verdict on every queued packet up to an id, to the kernel. Since 3.1.
pub const NFQNL_MSG_VERDICT_BATCH: u16 = NFQNL_MSG_PACKET | 3;

// netfilter/nfnetlink_queue.h: enum nfqnl_attr_type

/// `struct nfqnl_msg_packet_hdr`: packet id (be32), link protocol (be16), hook (u8); 7 bytes.
pub const NFQA_PACKET_HDR: u16 = 1;
/// `struct nfqnl_msg_verdict_hdr`: verdict (be32), packet id (be32); 8 bytes.
pub const NFQA_VERDICT_HDR: u16 = 2;
/// The packet's mark, be32.
pub const NFQA_MARK: u16 = 3;
/// `struct nfqnl_msg_packet_timestamp`: seconds and microseconds, be64 each.
pub const NFQA_TIMESTAMP: u16 = 4;
/// Index of the input device, be32.
pub const NFQA_IFINDEX_INDEV: u16 = 5;
/// Index of the output device, be32.
pub const NFQA_IFINDEX_OUTDEV: u16 = 6;
/// Index of the bridge port the packet came in through, be32.
pub const NFQA_IFINDEX_PHYSINDEV: u16 = 7;
/// Index of the bridge port the packet leaves through, be32.
pub const NFQA_IFINDEX_PHYSOUTDEV: u16 = 8;
/// `struct nfqnl_msg_packet_hw`: address length (be16), 2 bytes of padding, 8 bytes of address.
pub const NFQA_HWADDR: u16 = 9;
/// The packet from its network header on.
pub const NFQA_PAYLOAD: u16 = 10;
/// The conntrack entry: nested `CTA_*` attributes. Since 3.6.
pub const NFQA_CT: u16 = 11;
/// `enum ip_conntrack_info`, be32. Since 3.6.
pub const NFQA_CT_INFO: u16 = 12;
/// Full length of a packet of which only a part was copied, be32. Since 3.7.
pub const NFQA_CAP_LEN: u16 = 13;
/// `NFQA_SKB_*` bits, be32. Since 3.10.
pub const NFQA_SKB_INFO: u16 = 14;
/// A conntrack expectation to create, nested `CTA_EXPECT_*`; to the kernel only. Since 3.12.
pub const NFQA_EXP: u16 = 15;
/// User id of the socket the packet belongs to, be32. Since 3.14.
pub const NFQA_UID: u16 = 16;
/// Group id of the socket the packet belongs to, be32. Since 3.14.
pub const NFQA_GID: u16 = 17;
/// Security context of the packet, text without a final NUL. Since 4.3.
pub const NFQA_SECCTX: u16 = 18;
/// VLAN tag: nested `NFQA_VLAN_*`, bridge family only. Since 4.7.
pub const NFQA_VLAN: u16 = 19;
/// Link-layer header, bridge family only. Since 4.7.
pub const NFQA_L2HDR: u16 = 20;
/// The packet's priority, be32. Since 5.18.
pub const NFQA_PRIORITY: u16 = 21;
/// The `net_cls` class id of the sending cgroup, be32. Since 6.4.
pub const NFQA_CGROUP_CLASSID: u16 = 22;

// netfilter/nfnetlink_queue.h: enum nfqnl_vlan_attr

/// Ethertype of the VLAN tag, be16.
pub const NFQA_VLAN_PROTO: u16 = 1;
/// Tag control information of the VLAN tag, be16.
pub const NFQA_VLAN_TCI: u16 = 2;

// netfilter/nfnetlink_queue.h: NFQA_SKB_INFO bits

/// The transport checksum is only the pseudo header's sum; the kernel completes it later.
pub const NFQA_SKB_CSUMNOTREADY: u32 = 1 << 0;
/// The packet is a super-packet that is cut into segments later.
pub const NFQA_SKB_GSO: u32 = 1 << 1;
/// Nobody has verified the packet's checksum.
pub const NFQA_SKB_CSUM_NOTVERIFIED: u32 = 1 << 2;

// netfilter/nfnetlink_queue.h: enum nfqnl_attr_config

/// `struct nfqnl_msg_config_cmd`: command (u8), padding (u8), protocol family (be16).
pub const NFQA_CFG_CMD: u16 = 1;
/// `struct nfqnl_msg_config_params`: copy range (be32), copy mode (u8); 5 bytes.
pub const NFQA_CFG_PARAMS: u16 = 2;
/// Most packets the kernel holds, be32. Since 2.6.20.
pub const NFQA_CFG_QUEUE_MAXLEN: u16 = 3;
/// Which of the flags to change, be32. Since 3.6.
pub const NFQA_CFG_MASK: u16 = 4;
/// New values of the flags, be32. Since 3.6.
pub const NFQA_CFG_FLAGS: u16 = 5;

// netfilter/nfnetlink_queue.h: enum nfqnl_msg_config_cmds

/// No command.
pub const NFQNL_CFG_CMD_NONE: u8 = 0;
/// Take a queue number.
pub const NFQNL_CFG_CMD_BIND: u8 = 1;
/// Give a queue number back; the kernel drops what still waits in the queue.
pub const NFQNL_CFG_CMD_UNBIND: u8 = 2;
/// Needed before 3.8 only; today it does nothing, and so tells whether the sender has the capability.
pub const NFQNL_CFG_CMD_PF_BIND: u8 = 3;
/// Needed before 3.8 only; today it does nothing.
pub const NFQNL_CFG_CMD_PF_UNBIND: u8 = 4;

// netfilter/nfnetlink_queue.h: enum nfqnl_config_mode

/// Copy nothing. The kernel then *drops* every packet of the queue.
pub const NFQNL_COPY_NONE: u8 = 0;
/// Copy the attributes without the packet's bytes.
pub const NFQNL_COPY_META: u8 = 1;
/// Copy the attributes and the packet's bytes.
pub const NFQNL_COPY_PACKET: u8 = 2;

/// The longest payload that an attribute can carry: its 16-bit length counts its header.
pub const NFQNL_MAX_COPY_RANGE: u32 = 0xffff - 4;

// netfilter/nfnetlink_queue.h: NFQA_CFG_F_*

/// Accept packets that do not fit instead of dropping them. Since 3.6.
pub const NFQA_CFG_F_FAIL_OPEN: u32 = 1 << 0;
/// Send the conntrack entry with each packet. Since 3.6.
pub const NFQA_CFG_F_CONNTRACK: u32 = 1 << 1;
/// Send super-packets whole instead of cutting them into segments. Since 3.10.
pub const NFQA_CFG_F_GSO: u32 = 1 << 2;
/// Send the user and group id of the packet's socket. Since 3.14.
pub const NFQA_CFG_F_UID_GID: u32 = 1 << 3;
/// Send the packet's security context. Since 4.3.
pub const NFQA_CFG_F_SECCTX: u32 = 1 << 4;

// netfilter.h

/// Free the packet.
pub const NF_DROP: u32 = 0;
/// Let the packet go on to the next hook.
pub const NF_ACCEPT: u32 = 1;
/// Hand the packet to another queue, whose number is in the upper 16 bits.
pub const NF_QUEUE: u32 = 3;
/// Run the same hook once more.
pub const NF_REPEAT: u32 = 4;
/// Let the packet go and skip the remaining hooks of this hook point.
pub const NF_STOP: u32 = 5;
/// With [`NF_QUEUE`]: let the packet go on where nobody listens on the other queue. Since 3.1.
pub const NF_VERDICT_FLAG_QUEUE_BYPASS: u32 = 0x8000;

/// Hook before routing.
pub const NF_INET_PRE_ROUTING: u8 = 0;
/// Hook of packets for this host.
pub const NF_INET_LOCAL_IN: u8 = 1;
/// Hook of packets that pass through.
pub const NF_INET_FORWARD: u8 = 2;
/// Hook of packets this host sends.
pub const NF_INET_LOCAL_OUT: u8 = 3;
/// Hook after routing.
pub const NF_INET_POST_ROUTING: u8 = 4;
/// Hook in the bridge that may hand frames to the routing layer; from `netfilter_bridge.h`.
pub const NF_BR_BROUTING: u8 = 5;

/// No particular family.
pub const NFPROTO_UNSPEC: u8 = 0;
/// IPv4 and IPv6, in rules; packets are never of it. Since 3.14.
pub const NFPROTO_INET: u8 = 1;
/// IPv4.
pub const NFPROTO_IPV4: u8 = 2;
/// Frames in a bridge.
pub const NFPROTO_BRIDGE: u8 = 7;
/// IPv6.
pub const NFPROTO_IPV6: u8 = 10;
