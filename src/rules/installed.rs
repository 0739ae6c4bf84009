//! Rules in place, until they are dropped.

use std::fmt;

use netlink_packet_netfilter::NetfilterProtoFamily;

use super::Mechanism;
use super::install::Attempt;
use super::requests;
use super::transaction::{Connection, Request};
use crate::error::Error;
use crate::flow::FlowBypass;

/// Rules in place. Dropping it deletes them and with them **all packets that wait in any queue of
/// the network namespace**; see [the module](super#taking-rules-away-drops-queued-packets) for how
/// to end without loss.
///
/// It holds a socket, which keeps its network namespace alive, and to which it all belongs: moving
/// the thread to another namespace changes nothing.
#[must_use = "dropping it deletes the rules; keep it in a variable with a name, `let _rules =`"]
pub struct InstalledRules {
    connection: Connection,
    family: NetfilterProtoFamily,
    table: String,
    rules: ChainRules,
    mechanism: Mechanism,
    owned: bool,
    flow_bypass: Option<FlowBypass>,
    paused: bool,
    removed: bool,
}

/// The rules of the queueing chain.
#[derive(Debug)]
pub(super) struct ChainRules {
    /// They let decided flows pass, or drop them.
    pub(super) decided: Vec<Request>,
    pub(super) queueing: Vec<Request>,
}

impl InstalledRules {
    pub(super) const fn new(
        connection: Connection,
        family: NetfilterProtoFamily,
        Attempt { owned, mechanism, .. }: Attempt,
        table: String,
        rules: ChainRules,
        flow_bypass: Option<FlowBypass>,
    ) -> Self {
        Self {
            connection,
            family,
            table,
            rules,
            mechanism,
            owned,
            flow_bypass,
            paused: false,
            removed: false,
        }
    }

    /// Takes the rules away and leaves the hook: packets are no longer queued, those already queued
    /// stay and can be judged. Does nothing if paused.
    ///
    /// Packets that are passing the rules in this very moment may still be queued just after. What
    /// was decided about flows, and is decided meanwhile, stays in force: dropped ones stay
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`Error::NoCapability`] if the process gave up `CAP_NET_ADMIN`; [`Error::Refused`],
    /// [`Error::AckTimeout`] and [`Error::System`] as for
    /// [`Rules::install`](super::Rules::install).
    pub fn pause(&mut self) -> Result<(), Error> {
        if self.paused {
            return Ok(());
        }
        // In one transaction, so that no packet of a dropped flow slips through.
        let mut requests = vec![requests::delete_rules(&self.table, requests::QUEUE)];
        requests.extend(self.rules.decided.iter().cloned());
        self.connection.commit(self.family, requests)?;
        self.paused = true;
        Ok(())
    }

    /// Puts paused rules back in place. Does nothing if not paused.
    ///
    /// # Errors
    ///
    /// As for [`InstalledRules::pause`].
    pub fn resume(&mut self) -> Result<(), Error> {
        if self.paused {
            self.connection.commit(self.family, self.rules.queueing.clone())?;
            self.paused = false;
        }
        Ok(())
    }

    /// Deletes the rules and the hook, as the drop does, and says whether that worked. The kernel
    /// drops all packets that wait in any queue of the network namespace.
    ///
    /// # Errors
    ///
    /// As for [`InstalledRules::pause`]. [`Error::Refused`] with `ENOENT` if somebody has deleted
    /// the table before. After an error the drop tries again.
    pub fn remove(self) -> Result<(), Error> {
        let mut this = self;
        this.delete_table()?;
        this.removed = true;
        Ok(())
    }

    /// What the kernel queues with.
    #[must_use]
    pub const fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// What packets of these rules need to decide about their flow. `None` without
    /// [`Rules::flow_bypass`](super::Rules::flow_bypass).
    #[must_use]
    pub const fn flow_bypass(&self) -> Option<FlowBypass> {
        self.flow_bypass
    }

    /// Whether the kernel deletes the rules by itself when this process ends without dropping them,
    /// by `SIGKILL` for one: since Linux 5.12.
    ///
    /// A child process that inherited the socket by `fork` keeps them alive.
    #[must_use]
    pub const fn is_owned(&self) -> bool {
        self.owned
    }

    /// The name of the table, as `nft list tables` shows it. Unique in the network namespace.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    fn delete_table(&mut self) -> Result<(), Error> {
        let request = requests::delete_table(&self.table);
        Ok(self.connection.commit(self.family, vec![request])?)
    }
}

impl fmt::Debug for InstalledRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstalledRules")
            .field("table", &self.table)
            .field("mechanism", &self.mechanism)
            .field("owned", &self.owned)
            .field("flow_bypass", &self.flow_bypass)
            .field("paused", &self.paused)
            .finish_non_exhaustive()
    }
}

impl Drop for InstalledRules {
    fn drop(&mut self) {
        // For an owned table closing the socket would do, but not wait for the end of it.
        if !self.removed {
            let _ = self.delete_table();
        }
    }
}
