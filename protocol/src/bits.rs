//! Sets of bits in words.

use std::fmt;

/// Writes the names of the bits that are set, joined by `|`, and those without a name as one number.
pub(crate) fn write_names(
    f: &mut fmt::Formatter<'_>,
    bits: u32,
    names: &[(u32, &str)],
) -> fmt::Result {
    let mut rest = bits;
    let mut separator = "";
    for (bit, name) in names {
        if bits & bit != 0 {
            write!(f, "{separator}{name}")?;
            separator = "|";
            rest &= !bit;
        }
    }
    if rest != 0 || bits == 0 {
        write!(f, "{separator}{rest:#x}")?;
    }
    Ok(())
}
