use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{Decided, Error, FlowBypass, FlowMarks, Packet, Queue};

pub fn flow_bypass(number: u16) -> Result<(), Error> {
    let mut queue = Queue::builder(number).bind()?;
    let rules = Rules::new(Hook::FORWARD)
        .rule(Rule::queue(number).protocol(Protocol::UDP))
        .flow_bypass(FlowMarks::default())
        .install()?;
    let flows = rules.flow_bypass().expect("asked for above");
    queue.run(|packet| decide(packet, flows))
}

/// Looks at a flow until it knows. What comes later of a flow that is decided about does not come
/// up.
pub fn decide(packet: Packet<'_>, flows: FlowBypass) -> Decided<'_> {
    let payload = packet.payload();
    if payload.ends_with(b"forbidden") {
        packet.drop_flow(flows)
    } else if payload.ends_with(b"harmless") {
        packet.accept_flow(flows)
    } else {
        packet.accept()
    }
}
