//! Which network namespace is watched, and whether anybody still lives there.

use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use netfilterqueue::Namespace;

/// Names a network namespace in one of three ways.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Target {
    /// That of this process, such as any process of a container
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,

    /// That which `ip netns add` has given this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// That of this file, such as /proc/PID/ns/net or one that a container runtime has mounted
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
}

/// A namespace that is watched, and the process by which it was named.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) namespace: Namespace,
    resident: Option<Resident>,
}

#[derive(Debug)]
struct Resident {
    pid: u32,
    namespace: (u64, u64),
}

impl Target {
    pub(crate) fn open(&self) -> Result<Watched, Box<dyn Error>> {
        let (namespace, resident) = match self {
            Self { pid: Some(pid), .. } => {
                let explain = |error| format!("process {pid}: {error}");
                let namespace = Namespace::of_process(*pid).map_err(explain)?;
                let inode = inode(*pid).map_err(|error| format!("process {pid}: {error}"))?;
                (namespace, Some(Resident { pid: *pid, namespace: inode }))
            }
            Self { name: Some(name), .. } => (Namespace::named(name)?, None),
            Self { path: Some(path), .. } => (Namespace::open(path)?, None),
            // clap asks for one of them.
            _ => return Err("give --pid, --name or --path".into()),
        };
        Ok(Watched { namespace, resident })
    }
}

impl Watched {
    /// Whether the process has ended or left. The namespace itself lives on while it is watched,
    /// with nobody in it.
    pub(crate) fn is_deserted(&self) -> bool {
        self.resident.as_ref().is_some_and(|resident| {
            // Another process may have got the number since.
            inode(resident.pid).ok() != Some(resident.namespace)
        })
    }

    /// Whether it can be deserted.
    pub(crate) const fn has_resident(&self) -> bool {
        self.resident.is_some()
    }
}

fn inode(pid: u32) -> io::Result<(u64, u64)> {
    fs::metadata(format!("/proc/{pid}/ns/net")).map(|file| (file.dev(), file.ino()))
}
