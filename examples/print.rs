//! Prints each packet of a queue and accepts it.
//!
//! ```text
//! iptables -I INPUT -j NFQUEUE --queue-num 1 --queue-bypass
//! nft 'add table inet print; add chain inet print in { type filter hook input priority 0; }; add rule inet print in queue flags bypass to 1'
//! ```
//!
//! `cargo run --release --example print -- 1`

use netfilterqueue::Queue;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let number = std::env::args().nth(1).map_or(Ok(1), |number| number.parse())?;
    let mut queue = Queue::builder(number).bind()?;
    queue.run(|packet| {
        println!("{packet}");
        packet.accept()
    })?;
    Ok(())
}
