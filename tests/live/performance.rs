//! x

use netfilterqueue_netns::Namespace;

use crate::{Test, tests};

pub const TESTS: [Test; 0] = tests![];
