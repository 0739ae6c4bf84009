//! What borrowed and retained packets have in common: reading and changing a packet. Written once,
//! as a macro, because a trait would have to be imported by every user.

/// The methods of a packet type with the fields `slot`, `buffer` and `binding`.
macro_rules! packet_methods {
    () => {
        /// The packet id. Ids of a queue are consecutive from 1 and wrap at 2^32.
        #[must_use]
        pub const fn id(&self) -> u32 {
            self.slot.index.id()
        }

        /// The queue number.
        #[must_use]
        pub const fn queue(&self) -> u16 {
            self.slot.index.queue()
        }

        /// The hook's family: IPv4, IPv6 or bridge.
        #[must_use]
        pub fn family(&self) -> Family {
            Family(self.message().family())
        }

        /// The hook it was queued at.
        #[must_use]
        pub fn hook(&self) -> Hook {
            Hook(self.message().hook())
        }

        /// The ethertype, host order: 0x0800 IPv4, 0x86dd IPv6; the frame's own in the bridge
        /// family.
        #[must_use]
        pub fn hw_protocol(&self) -> u16 {
            self.message().hw_protocol()
        }

        /// Index of the input device. `None` at the output hook and for local packets at
        /// postrouting.
        #[must_use]
        pub fn indev(&self) -> Option<u32> {
            self.message().indev()
        }

        /// Name of the input device, asked of the kernel and remembered for a second. `None` where
        /// there is no device, it is gone by now, or the queue is on a socket from elsewhere
        /// ([`QueueBuilder::bind_on`](crate::QueueBuilder::bind_on)).
        #[must_use]
        pub fn indev_name(&self) -> Option<Arc<str>> {
            self.binding.interfaces().name(self.indev()?)
        }

        /// Index of the output device. `None` at the prerouting and input hooks.
        #[must_use]
        pub fn outdev(&self) -> Option<u32> {
            self.message().outdev()
        }

        /// Name of the output device, asked of the kernel and remembered for a second. `None` where
        /// there is no device, it is gone by now, or the queue is on a socket from elsewhere
        /// ([`QueueBuilder::bind_on`](crate::QueueBuilder::bind_on)).
        #[must_use]
        pub fn outdev_name(&self) -> Option<Arc<str>> {
            self.binding.interfaces().name(self.outdev()?)
        }

        /// Index of the bridge port the packet came in through; bridged packets only.
        #[must_use]
        pub fn physindev(&self) -> Option<u32> {
            self.message().physindev()
        }

        /// Name of the bridge port the packet came in through, under the conditions of
        /// [`indev_name`](Self::indev_name).
        #[must_use]
        pub fn physindev_name(&self) -> Option<Arc<str>> {
            self.binding.interfaces().name(self.physindev()?)
        }

        /// Index of the bridge port the packet leaves through; bridged packets only.
        #[must_use]
        pub fn physoutdev(&self) -> Option<u32> {
            self.message().physoutdev()
        }

        /// Name of the bridge port the packet leaves through, under the conditions of
        /// [`indev_name`](Self::indev_name).
        #[must_use]
        pub fn physoutdev_name(&self) -> Option<Arc<str>> {
            self.binding.interfaces().name(self.physoutdev()?)
        }

        /// Source link-layer address at its real length, at most 8 bytes. `None` at the output hook
        /// and on links without addresses; six zero bytes on the loopback device.
        #[must_use]
        pub fn hwaddr(&self) -> Option<&[u8]> {
            self.message().hwaddr()
        }

        /// When the packet was received. `None` at the output and postrouting hooks, and wherever
        /// nothing on the host has asked for time stamps.
        #[must_use]
        pub fn timestamp(&self) -> Option<Timestamp> {
            self.message().timestamp()
        }

        /// The packet's full length in bytes where only a part of it was copied, else `None`. Since
        /// 3.7.
        #[must_use]
        pub fn original_len(&self) -> Option<u32> {
            self.message().cap_len()
        }

        /// State of the packet's checksum and segmentation; `None` when there is nothing special.
        /// Since 3.10.
        #[must_use]
        pub fn skb_info(&self) -> Option<SkbInfo> {
            self.message().skb_info()
        }

        /// User id of the socket the packet belongs to, as the *initial* user namespace has it.
        /// `None` without `QueueBuilder::uid_gid` or where the kernel knows no socket. Since 3.14.
        #[must_use]
        pub fn uid(&self) -> Option<u32> {
            self.message().uid()
        }

        /// Group id, under the same conditions as the user id. Since 3.14.
        #[must_use]
        pub fn gid(&self) -> Option<u32> {
            self.message().gid()
        }

        /// Security context, text without the final NUL that some modules send. `None` without
        /// `QueueBuilder::secctx` or a security module that labels packets. Since 4.3.
        #[must_use]
        pub fn secctx(&self) -> Option<&[u8]> {
            self.message().secctx()
        }

        /// The priority (`skb->priority`): the one that was set, else the one the packet came with,
        /// which is absent when it is 0. Since 5.18.
        #[must_use]
        pub fn priority(&self) -> Option<u32> {
            let set = self.slot.changes().and_then(|changes| changes.priority);
            set.or_else(|| self.message().priority())
        }

        /// `net_cls` class id of the sending cgroup; `None` when it is 0. Since 6.4.
        #[must_use]
        pub fn cgroup_classid(&self) -> Option<u32> {
            self.message().cgroup_classid()
        }

        /// The VLAN tag of a bridged frame: the one that was set, else the one it came with. Since
        /// 4.7.
        #[must_use]
        pub fn vlan(&self) -> Option<Vlan> {
            let set = self.slot.changes().and_then(|changes| changes.extras()?.vlan);
            set.or_else(|| self.message().vlan())
        }

        /// Link-layer header of a bridged frame, VLAN tag excluded: the one that was set, else the
        /// one it came with. 14 bytes for Ethernet: destination, source, ethertype. Since 4.7.
        #[must_use]
        pub fn l2_header(&self) -> Option<&[u8]> {
            let extras = self.slot.changes().and_then(|changes| changes.extras());
            let set = extras.and_then(|extras| extras.l2_header.as_ref());
            set.map(L2Header::as_bytes).or_else(|| self.message().l2_header())
        }

        /// The conntrack entry. `None` without `QueueBuilder::conntrack` or for packets that
        /// conntrack does not follow. Since 3.6.
        #[must_use]
        pub fn conntrack(&self) -> Option<Conntrack<'_>> {
            self.message().conntrack()
        }

        /// The packet's relation to its conntrack entry. Comes with the conntrack entry.
        #[must_use]
        pub fn conntrack_info(&self) -> Option<ConntrackInfo> {
            self.message().conntrack_info()
        }

        /// The attribute with this `NFQA_*` number, known to this crate or not.
        #[must_use]
        pub fn attribute(&self, kind: u16) -> Option<Attribute<'_>> {
            self.message().attribute(kind)
        }

        /// The packet's bytes from its network header on: the edited ones if there are any, else as
        /// received. Empty if the kernel copied none.
        #[must_use]
        pub fn payload(&self) -> &[u8] {
            match self.slot.edit() {
                Some(edit) => self.buffer.get(edit.range()).unwrap_or_default(),
                None => self.message().payload(),
            }
        }

        /// The mark: the one that was set, else the one the packet came with, which is absent when
        /// it is 0. The latter alone is `packet.message().mark()`.
        #[must_use]
        pub fn mark(&self) -> Option<u32> {
            let set = self.slot.changes().and_then(|changes| changes.mark);
            set.or_else(|| self.message().mark())
        }

        /// The kernel's message. After an edit its payload is not the original one any more.
        #[must_use]
        pub fn message(&self) -> PacketMessage<'_> {
            self.slot.index.view(&self.buffer)
        }

        /// The packet's bytes for editing in place, from the network header on. From this call on
        /// they are sent back with the verdict, changed or not. (Linux 7.3 drops bridged frames
        /// whose bytes come back, without a word; 6.18 does not.)
        ///
        /// Lengths and checksums are set when the verdict is given; see [`EditMode`] and
        /// [`checksum`](crate::checksum).
        ///
        /// Kernels since 7.2 guard what they take back: they drop a packet, tell nobody and count
        /// the verdict as given
        /// - if it is of the bridge family, changed or not;
        /// - in a network namespace that does not belong to the initial user namespace;
        /// - if its IP length is not that of the bytes, or its transport header is not whole;
        /// - if IPv4 options, fragment fields other than "don't fragment", or IPv6 extension
        ///   headers are not as they were, or the protocol is not (over IPv4 only of a packet that
        ///   conntrack follows).
        ///
        /// # Errors
        ///
        /// [`EditError::NotCopied`] and [`EditError::Truncated`] if the bytes are not the whole
        /// packet; [`EditError::UdpSuperPacket`] and [`EditError::UnfinishedChecksum`] if the
        /// kernel could not send them on; [`EditError::TooLong`] if the socket's send buffer cannot
        /// take it.
        pub fn payload_mut(&mut self) -> Result<&mut [u8], EditError> {
            self.slot.payload_mut(&mut self.buffer, &self.binding)
        }

        /// Sets the mark that the packet leaves with, whatever the verdict.
        pub fn set_mark(&mut self, mark: u32) {
            self.slot.changes_mut().mark = Some(mark);
        }

        /// Sets the priority (`skb->priority`) that the packet leaves with, whatever the verdict.
        /// Kernels before 5.18 ignore it.
        pub fn set_priority(&mut self, priority: u32) {
            self.slot.changes_mut().priority = Some(priority);
        }

        /// Gives a bridged frame another VLAN tag, or one if it has none; a tag cannot be taken
        /// away. Since 4.7.
        ///
        /// # Errors
        ///
        /// [`EditError::NotBridged`] outside the bridge family, where the kernel would ignore it.
        pub fn set_vlan(&mut self, vlan: Vlan) -> Result<(), EditError> {
            if self.family() != Family::BRIDGE {
                return Err(EditError::NotBridged);
            }
            self.slot.changes_mut().extras_mut().vlan = Some(vlan);
            Ok(())
        }

        /// Gives a bridged frame another link-layer header of the same length, as
        /// [`l2_header`](Self::l2_header) returns it. Since 4.7.
        ///
        /// # Errors
        ///
        /// [`EditError::NotBridged`] if the packet came without one; [`EditError::L2HeaderLength`]
        /// for another length, for which the kernel would drop the packet (and leak it before March
        /// 2026).
        pub fn set_l2_header(&mut self, header: &[u8]) -> Result<(), EditError> {
            let present = self.message().l2_header().ok_or(EditError::NotBridged)?.len();
            let error = EditError::L2HeaderLength { len: header.len(), present };
            let header = L2Header::new(header).filter(|_| header.len() == present);
            self.slot.changes_mut().extras_mut().l2_header = Some(header.ok_or(error)?);
            Ok(())
        }

        /// Changes the packet's conntrack entry with the verdict, whatever the verdict. Since 3.6.
        ///
        /// The kernel says nothing if it cannot: where conntrack does not follow the packet, where
        /// it lacks what [`Queue::supported_flags`](crate::Queue::supported_flags) calls
        /// [`ConfigFlags::CONNTRACK`](crate::ConfigFlags::CONNTRACK), or where it refuses a part of
        /// the change (see [`ConntrackChange`]).
        ///
        /// Do not combine it with a TCP payload of another length on a connection with address
        /// translation, unless a conntrack helper watches it: the kernel then tries to adjust
        /// sequence numbers and logs a warning that it cannot.
        pub fn set_conntrack(&mut self, change: ConntrackChange) {
            self.slot.changes_mut().extras_mut().conntrack = Some(change);
        }

        /// Chooses how this packet leaves if it is edited, other than its queue has it
        /// ([`QueueBuilder::edit_mode`](crate::QueueBuilder::edit_mode)).
        pub fn set_edit_mode(&mut self, mode: EditMode) {
            self.slot.changes_mut().edit_mode = Some(mode);
        }

        /// Sets lengths and checksums of an edited packet now, and says what came of it; without
        /// this call the verdict does it. `None` for a packet that was not edited or is not IP.
        pub fn complete(&mut self) -> Option<Completion> {
            self.slot.complete(&mut self.buffer)
        }
    };
}

pub(crate) use packet_methods;
