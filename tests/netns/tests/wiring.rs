//! Two hosts with a router between, over IPv4 and IPv6. Has a main of its own, because a user
//! namespace can only be entered while the process has one thread.

use std::error::Error;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use netfilterqueue_netns::{Namespace, enter_user_namespace};

fn main() -> Result<(), Box<dyn Error>> {
    enter_user_namespace()?;
    routed()?;
    loopback()?;
    panics_come_through()?;
    mistakes_are_named()?;
    println!("wiring: ok");
    Ok(())
}

fn routed() -> Result<(), Box<dyn Error>> {
    let (client, router, server) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
    client.veth("up", &router, "left")?;
    router.veth("right", &server, "up")?;
    for (left, right) in [("10.1.0.", "10.2.0."), ("fd01::", "fd02::")] {
        let prefix = if left.contains(':') { 64 } else { 24 };
        let ip = |net: &str, host: u8| format!("{net}{host}").parse::<IpAddr>();
        client.add_address("up", ip(left, 1)?, prefix)?;
        router.add_address("left", ip(left, 2)?, prefix)?;
        router.add_address("right", ip(right, 2)?, prefix)?;
        server.add_address("up", ip(right, 1)?, prefix)?;
        client.add_default_route(ip(left, 2)?)?;
        server.add_route(ip(left, 0)?, prefix, ip(right, 2)?)?;
    }
    router.set_forwarding()?;
    client.set_mtu("up", 1400)?;
    for address in ["10.2.0.1", "fd02::1"] {
        let address = SocketAddr::new(address.parse()?, 7);
        let receiver = server.run(|| UdpSocket::bind(address))?;
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        client.run(|| UdpSocket::bind(any)?.send_to(b"hello", address))?;
        let mut buffer = [0; 16];
        let (length, _) = receiver.recv_from(&mut buffer)?;
        assert_eq!(&buffer[..length], b"hello", "{address}");
    }
    assert!(client.link_index("up")? > 1);
    client.set_link("up", false)?;
    Ok(())
}

fn loopback() -> Result<(), Box<dyn Error>> {
    let namespace = Namespace::new()?;
    for address in ["127.0.0.1:7", "[::1]:7"] {
        // Port 7 needs the privileges that the namespace brings.
        namespace.run(|| UdpSocket::bind(address))?;
    }
    Ok(())
}

fn panics_come_through() -> Result<(), Box<dyn Error>> {
    let namespace = Namespace::new()?;
    let panic = catch_unwind(AssertUnwindSafe(|| {
        namespace.run(|| resume_unwind(Box::new("seen outside")))
    }));
    let panic = panic.expect_err("the panic was lost");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"seen outside"));
    Ok(())
}

fn mistakes_are_named() -> Result<(), Box<dyn Error>> {
    let namespace = Namespace::new()?;
    let error = namespace.add_address("absent", [10, 0, 0, 1].into(), 24).expect_err("no link");
    assert!(error.to_string().starts_with("adding 10.0.0.1/24 to absent: "), "{error}");
    let unreachable = namespace.run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"", "10.9.9.9:9"));
    assert_eq!(unreachable.expect_err("no route").kind(), ErrorKind::NetworkUnreachable);
    Ok(())
}
