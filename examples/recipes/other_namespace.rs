use std::os::fd::OwnedFd;

use netfilterqueue::rules::{Hook, InstalledRules, Rule, Rules};
use netfilterqueue::{Error, Namespace, Queue, open_socket};

/// With the right to enter the namespace (`CAP_SYS_ADMIN`). Queue and rules stay there; this thread
/// stays here.
pub fn queue_in(namespace: &Namespace, number: u16) -> Result<(Queue, InstalledRules), Error> {
    namespace.run(|| {
        let queue = Queue::builder(number).bind()?;
        let rules = Rules::new(Hook::FORWARD).rule(Rule::queue(number)).install()?;
        Ok((queue, rules))
    })?
}

/// Without it: somebody who is inside opens a socket ...
pub fn open_inside() -> Result<OwnedFd, Error> {
    open_socket()
}

/// ... and who has got the socket judges the packets of that namespace. It takes `CAP_NET_ADMIN` in
/// the user namespace that owns it.
pub fn queue_on(socket: OwnedFd, number: u16) -> Result<Queue, Error> {
    Queue::builder(number).bind_on(socket)
}
