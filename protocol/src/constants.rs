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
/// Attribute flag: the value is in network byte order. `nfnetlink_queue` never sets it, although
/// its values are.
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
/// Needed before 3.8 only; today it does nothing, and so tells whether the sender has the
/// capability.
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

// netfilter/nfnetlink_conntrack.h: enum ctattr_type, the attributes inside NFQA_CT. The kernel
// sends and takes only some of them with packets.

/// The flow as its first packet had it: nested `CTA_TUPLE_*`.
pub const CTA_TUPLE_ORIG: u16 = 1;
/// The flow as answers to it look: nested `CTA_TUPLE_*`.
pub const CTA_TUPLE_REPLY: u16 = 2;
/// `IPS_*` bits, be32.
pub const CTA_STATUS: u16 = 3;
/// What the protocol's tracker knows: nested `CTA_PROTOINFO_*`.
pub const CTA_PROTOINFO: u16 = 4;
/// The helper: nested `CTA_HELP_*`.
pub const CTA_HELP: u16 = 5;
/// Source address translation to set up; never in the kernel's messages.
pub const CTA_NAT_SRC: u16 = 6;
/// Seconds until the entry expires, be32.
pub const CTA_TIMEOUT: u16 = 7;
/// The flow's mark, be32.
pub const CTA_MARK: u16 = 8;
/// What was counted in the original direction: nested `CTA_COUNTERS_*`.
pub const CTA_COUNTERS_ORIG: u16 = 9;
/// What was counted in the reply direction: nested `CTA_COUNTERS_*`.
pub const CTA_COUNTERS_REPLY: u16 = 10;
/// Reference count, be32; not sent with packets.
pub const CTA_USE: u16 = 11;
/// The entry's id, be32.
pub const CTA_ID: u16 = 12;
/// Destination address translation to set up; never in the kernel's messages.
pub const CTA_NAT_DST: u16 = 13;
/// The flow that this one was expected by: nested `CTA_TUPLE_*`.
pub const CTA_TUPLE_MASTER: u16 = 14;
/// Adjustment of TCP sequence numbers in the original direction: nested `CTA_SEQADJ_*`.
pub const CTA_SEQ_ADJ_ORIG: u16 = 15;
/// Adjustment of TCP sequence numbers in the reply direction: nested `CTA_SEQADJ_*`.
pub const CTA_SEQ_ADJ_REPLY: u16 = 16;
/// Obsolete, replaced by [`CTA_SECCTX`].
pub const CTA_SECMARK: u16 = 17;
/// The zone of both directions, be16.
pub const CTA_ZONE: u16 = 18;
/// The flow's security context: nested `CTA_SECCTX_*`.
pub const CTA_SECCTX: u16 = 19;
/// When the flow started and stopped: nested `CTA_TIMESTAMP_*`.
pub const CTA_TIMESTAMP: u16 = 20;
/// Which bits of the mark to clear, be32; to the kernel only.
pub const CTA_MARK_MASK: u16 = 21;
/// Label bits, 16 bytes. Since 3.9.
pub const CTA_LABELS: u16 = 22;
/// Which label bits to clear, as long as the labels; to the kernel only. Since 3.9.
pub const CTA_LABELS_MASK: u16 = 23;
/// What the SYN proxy knows about the connection.
pub const CTA_SYNPROXY: u16 = 24;
/// Filter of a listing; not used with packets.
pub const CTA_FILTER: u16 = 25;
/// Filter of a listing; not used with packets.
pub const CTA_STATUS_MASK: u16 = 26;

// netfilter/nfnetlink_conntrack.h: enum ctattr_tuple

/// The addresses: nested `CTA_IP_*`.
pub const CTA_TUPLE_IP: u16 = 1;
/// Protocol and ports: nested `CTA_PROTO_*`.
pub const CTA_TUPLE_PROTO: u16 = 2;
/// The zone of this direction alone, be16. Since 4.3.
pub const CTA_TUPLE_ZONE: u16 = 3;

// netfilter/nfnetlink_conntrack.h: enum ctattr_ip

/// Source address, 4 bytes.
pub const CTA_IP_V4_SRC: u16 = 1;
/// Destination address, 4 bytes.
pub const CTA_IP_V4_DST: u16 = 2;
/// Source address, 16 bytes.
pub const CTA_IP_V6_SRC: u16 = 3;
/// Destination address, 16 bytes.
pub const CTA_IP_V6_DST: u16 = 4;

// netfilter/nfnetlink_conntrack.h: enum ctattr_l4proto

/// IP protocol number, u8.
pub const CTA_PROTO_NUM: u16 = 1;
/// Source port, be16; of GRE, the key.
pub const CTA_PROTO_SRC_PORT: u16 = 2;
/// Destination port, be16; of GRE, the key.
pub const CTA_PROTO_DST_PORT: u16 = 3;
/// ICMP echo id, be16.
pub const CTA_PROTO_ICMP_ID: u16 = 4;
/// ICMP type, u8.
pub const CTA_PROTO_ICMP_TYPE: u16 = 5;
/// ICMP code, u8.
pub const CTA_PROTO_ICMP_CODE: u16 = 6;
/// `ICMPv6` echo id, be16.
pub const CTA_PROTO_ICMPV6_ID: u16 = 7;
/// `ICMPv6` type, u8.
pub const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
/// `ICMPv6` code, u8.
pub const CTA_PROTO_ICMPV6_CODE: u16 = 9;

// netfilter/nfnetlink_conntrack.h: enum ctattr_protoinfo

/// State of a TCP connection: nested `CTA_PROTOINFO_TCP_*`.
pub const CTA_PROTOINFO_TCP: u16 = 1;
/// State of a DCCP connection.
pub const CTA_PROTOINFO_DCCP: u16 = 2;
/// State of an SCTP association.
pub const CTA_PROTOINFO_SCTP: u16 = 3;

// netfilter/nfnetlink_conntrack.h: enum ctattr_protoinfo_tcp

/// `enum tcp_conntrack`, u8.
pub const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// Window scale of the original direction, u8.
pub const CTA_PROTOINFO_TCP_WSCALE_ORIGINAL: u16 = 2;
/// Window scale of the reply direction, u8.
pub const CTA_PROTOINFO_TCP_WSCALE_REPLY: u16 = 3;
/// `struct nf_ct_tcp_flags` of the original direction: flags and mask, u8 each.
pub const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
/// `struct nf_ct_tcp_flags` of the reply direction: flags and mask, u8 each.
pub const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;

// netfilter/nfnetlink_conntrack.h: enum ctattr_counters, ctattr_tstamp, ctattr_seqadj, ctattr_help,
// ctattr_secctx

/// Packets, be64.
pub const CTA_COUNTERS_PACKETS: u16 = 1;
/// Bytes, be64.
pub const CTA_COUNTERS_BYTES: u16 = 2;
/// Empty; puts what follows at a multiple of eight bytes.
pub const CTA_COUNTERS_PAD: u16 = 5;
/// Start of the flow in nanoseconds since 1970, be64.
pub const CTA_TIMESTAMP_START: u16 = 1;
/// End of the flow in nanoseconds since 1970, be64.
pub const CTA_TIMESTAMP_STOP: u16 = 2;
/// Empty; puts what follows at a multiple of eight bytes.
pub const CTA_TIMESTAMP_PAD: u16 = 3;
/// Sequence number of the last change of length, be32.
pub const CTA_SEQADJ_CORRECTION_POS: u16 = 1;
/// Offset of sequence numbers before it, signed, be32.
pub const CTA_SEQADJ_OFFSET_BEFORE: u16 = 2;
/// Offset of sequence numbers after it, signed, be32.
pub const CTA_SEQADJ_OFFSET_AFTER: u16 = 3;
/// The helper's name, text with a final NUL.
pub const CTA_HELP_NAME: u16 = 1;
/// What the helper keeps about the flow.
pub const CTA_HELP_INFO: u16 = 2;
/// Security context, text with a final NUL.
pub const CTA_SECCTX_NAME: u16 = 1;

// netfilter/nfnetlink_conntrack.h: enum ctattr_expect, the attributes inside NFQA_EXP

/// The flow that expects: nested `CTA_TUPLE_*`. Not looked at in a verdict.
pub const CTA_EXPECT_MASTER: u16 = 1;
/// The expected flow: nested `CTA_TUPLE_*`.
pub const CTA_EXPECT_TUPLE: u16 = 2;
/// Which bits of the expected flow count: nested `CTA_TUPLE_*`.
pub const CTA_EXPECT_MASK: u16 = 3;
/// Seconds until the expectation expires, be32.
pub const CTA_EXPECT_TIMEOUT: u16 = 4;
/// The expectation's id, be32.
pub const CTA_EXPECT_ID: u16 = 5;
/// Name of the expected flow's helper, text with a final NUL.
pub const CTA_EXPECT_HELP_NAME: u16 = 6;
/// The zone, be16.
pub const CTA_EXPECT_ZONE: u16 = 7;
/// `NF_CT_EXPECT_*` bits, be32.
pub const CTA_EXPECT_FLAGS: u16 = 8;
/// The helper's class of expectations, be32.
pub const CTA_EXPECT_CLASS: u16 = 9;
/// Address translation of the expected flow.
pub const CTA_EXPECT_NAT: u16 = 10;
/// Name of the kernel function to call for the expected flow, text with a final NUL.
pub const CTA_EXPECT_FN: u16 = 11;

// netfilter/nf_conntrack_common.h: enum ip_conntrack_info

/// Of a flow that has been answered, in its original direction.
pub const IP_CT_ESTABLISHED: u32 = 0;
/// First packet of an expected flow or an ICMP error about one, in the original direction.
pub const IP_CT_RELATED: u32 = 1;
/// Of a flow that has not been answered yet.
pub const IP_CT_NEW: u32 = 2;
/// Not smaller than this: in the reply direction.
pub const IP_CT_IS_REPLY: u32 = 3;
/// Answer of a flow.
pub const IP_CT_ESTABLISHED_REPLY: u32 = IP_CT_ESTABLISHED + IP_CT_IS_REPLY;
/// [`IP_CT_RELATED`] in the reply direction.
pub const IP_CT_RELATED_REPLY: u32 = IP_CT_RELATED + IP_CT_IS_REPLY;

// netfilter/nf_conntrack_common.h: enum ip_conntrack_status

/// The flow was expected by another one. Never changes.
pub const IPS_EXPECTED: u32 = 1 << 0;
/// Packets of both directions were seen. Can be set, not cleared.
pub const IPS_SEEN_REPLY: u32 = 1 << 1;
/// The entry is not dropped early when the table is full. Can be set, not cleared.
pub const IPS_ASSURED: u32 = 1 << 2;
/// The entry is in the table: its first packet has left this host or reached its socket.
pub const IPS_CONFIRMED: u32 = 1 << 3;
/// The source address is translated in the original direction. Never changes.
pub const IPS_SRC_NAT: u32 = 1 << 4;
/// The destination address is translated in the original direction. Never changes.
pub const IPS_DST_NAT: u32 = 1 << 5;
/// TCP sequence numbers are adjusted.
pub const IPS_SEQ_ADJUST: u32 = 1 << 6;
/// Whether to translate the source address has been decided.
pub const IPS_SRC_NAT_DONE: u32 = 1 << 7;
/// Whether to translate the destination address has been decided.
pub const IPS_DST_NAT_DONE: u32 = 1 << 8;
/// The entry is no longer in the table.
pub const IPS_DYING: u32 = 1 << 9;
/// The timeout is fixed: packets do not prolong it, and the kernel refuses another one.
pub const IPS_FIXED_TIMEOUT: u32 = 1 << 10;
/// Not a flow but a rule's template for flows.
pub const IPS_TEMPLATE: u32 = 1 << 11;
/// Obsolete; newer kernels use the bit for themselves.
pub const IPS_UNTRACKED: u32 = 1 << 12;
/// A rule or a program attached a helper.
pub const IPS_HELPER: u32 = 1 << 13;
/// The flow is in a flow table and bypasses the hooks. Since 4.16.
pub const IPS_OFFLOAD: u32 = 1 << 14;
/// The flow is in the hardware's flow table.
pub const IPS_HW_OFFLOAD: u32 = 1 << 15;

// netfilter/nf_conntrack_tcp.h: enum tcp_conntrack

/// No packet was looked at yet.
pub const TCP_CONNTRACK_NONE: u8 = 0;
/// A SYN was seen.
pub const TCP_CONNTRACK_SYN_SENT: u8 = 1;
/// A SYN was answered with SYN and ACK.
pub const TCP_CONNTRACK_SYN_RECV: u8 = 2;
/// The handshake is over.
pub const TCP_CONNTRACK_ESTABLISHED: u8 = 3;
/// One side sent a FIN.
pub const TCP_CONNTRACK_FIN_WAIT: u8 = 4;
/// The other side acknowledged the FIN.
pub const TCP_CONNTRACK_CLOSE_WAIT: u8 = 5;
/// The other side sent a FIN as well.
pub const TCP_CONNTRACK_LAST_ACK: u8 = 6;
/// Both FINs are acknowledged.
pub const TCP_CONNTRACK_TIME_WAIT: u8 = 7;
/// A RST was seen.
pub const TCP_CONNTRACK_CLOSE: u8 = 8;
/// Both sides sent a SYN; the header also calls it `TCP_CONNTRACK_LISTEN`.
pub const TCP_CONNTRACK_SYN_SENT2: u8 = 9;
