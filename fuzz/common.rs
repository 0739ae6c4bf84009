//! What the targets share with the tests of the protocol crate.

// Each target is a crate of its own and uses a part of this.
#![allow(dead_code)]

#[path = "../protocol/tests/common/differential.rs"]
pub(crate) mod differential;
#[path = "../protocol/tests/common/model.rs"]
pub(crate) mod model;
#[path = "../protocol/tests/common/touch.rs"]
pub(crate) mod touch;
#[path = "../protocol/tests/common/wire.rs"]
mod wire;
