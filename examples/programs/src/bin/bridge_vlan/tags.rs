//! Which frames get which tag.

use std::fmt;
use std::str::FromStr;

use netfilterqueue::Vlan;

/// Ethertype of a tag that is added: 802.1Q.
const DOT1Q: u16 = 0x8100;

const ID_BITS: u16 = 0x0fff;
const PRIORITY_SHIFT: u32 = 13;

/// 0 tags a frame with a priority only, 4095 is reserved.
const ID_MAX: u16 = 4094;

/// `10:20`, `untagged:20`, or with the port by which frames came in `10:20@left`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    from: Option<u16>,
    to: u16,
    port: Option<String>,
}

/// `20:5`: frames of this VLAN get this priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Priority {
    id: u16,
    priority: u16,
}

impl FromStr for Map {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ids, port) = match text.split_once('@') {
            Some((_, "")) => return Err("the name of the port is missing behind the @".into()),
            Some((ids, port)) => (ids, Some(port.to_owned())),
            None => (text, None),
        };
        let (from, to) = ids.split_once(':').ok_or("as in 10:20, untagged:20 or 10:20@left")?;
        let from = if from == "untagged" { None } else { Some(id(from)?) };
        if to == "untagged" {
            return Err("the kernel does not take a tag away with a verdict".into());
        }
        Ok(Self { from, to: id(to)?, port })
    }
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (of, priority) = text.split_once(':').ok_or("as in 20:5")?;
        match priority.parse() {
            Ok(priority @ 0..=7) => Ok(Self { id: id(of)?, priority }),
            _ => Err("priorities are from 0 to 7".into()),
        }
    }
}

fn id(text: &str) -> Result<u16, String> {
    let id = text.parse().ok().filter(|id| (1..=ID_MAX).contains(id));
    id.ok_or_else(|| format!("{text:?} is no VLAN: they are from 1 to {ID_MAX}"))
}

/// The rules by which frames are tagged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tags {
    pub(crate) maps: Vec<Map>,
    pub(crate) priorities: Vec<Priority>,
}

impl Tags {
    /// The tag that a frame gets, if it is to have another one. The first map that matches counts,
    /// then the first priority of the VLAN that comes of it. Drop eligibility and the kind of tag
    /// stay.
    pub(crate) fn change(&self, tag: Option<Vlan>, port: Option<&str>) -> Option<Vlan> {
        // What has a priority only is in no VLAN.
        let from = tag.map(|tag| tag.tci & ID_BITS).filter(|&id| id != 0);
        let matches = |map: &&Map| {
            map.from == from && map.port.as_deref().is_none_or(|name| Some(name) == port)
        };
        let map = self.maps.iter().find(matches);
        let mut new = tag.unwrap_or(Vlan { proto: DOT1Q, tci: 0 });
        let id = map.map(|map| map.to).or(from)?;
        new.tci = new.tci & !ID_BITS | id;
        if let Some(to) = self.priorities.iter().find(|priority| priority.id == id) {
            new.tci = new.tci & !(7 << PRIORITY_SHIFT) | to.priority << PRIORITY_SHIFT;
        }
        (Some(new) != tag).then_some(new)
    }
}

/// As `VLAN 10`, `VLAN 10 priority 5`, `untagged`.
pub(crate) struct Shown(pub(crate) Option<Vlan>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(tag) = self.0 else { return f.write_str("untagged") };
        write!(f, "VLAN {}", tag.tci & ID_BITS)?;
        match tag.tci >> PRIORITY_SHIFT {
            0 => {}
            priority => write!(f, " priority {priority}")?,
        }
        if tag.proto == DOT1Q { Ok(()) } else { write!(f, " ({:#06x})", tag.proto) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(maps: &[&str], priorities: &[&str]) -> Tags {
        Tags {
            maps: maps.iter().map(|map| map.parse().expect("a map")).collect(),
            priorities: priorities.iter().map(|text| text.parse().expect("one")).collect(),
        }
    }

    const fn tag(tci: u16) -> Option<Vlan> {
        Some(Vlan { proto: DOT1Q, tci })
    }

    #[test]
    fn the_first_map_that_matches_counts() {
        let tags = tags(&["10:20@left", "20:10@right", "10:30", "untagged:40@left"], &[]);
        assert_eq!(tags.change(tag(10), Some("left")), tag(20));
        assert_eq!(tags.change(tag(20), Some("right")), tag(10));
        assert_eq!(tags.change(tag(10), Some("right")), tag(30));
        assert_eq!(tags.change(tag(10), None), tag(30));
        assert_eq!(tags.change(tag(20), Some("left")), None);
        assert_eq!(tags.change(None, Some("left")), tag(40));
        assert_eq!(tags.change(None, Some("right")), None);
        // A priority without a VLAN.
        assert_eq!(tags.change(tag(0x6000), Some("left")), tag(0x6000 | 40));
    }

    #[test]
    fn what_is_not_the_id_stays() {
        let tags = tags(&["10:20"], &[]);
        let service = |tci| Some(Vlan { proto: 0x88a8, tci });
        assert_eq!(tags.change(service(0xb000 | 10), None), service(0xb000 | 20));
    }

    #[test]
    fn priorities_are_those_of_the_new_vlan() {
        let tags = tags(&["10:20"], &["20:5", "30:0", "10:7"]);
        assert_eq!(tags.change(tag(10), None), tag(5 << 13 | 20));
        assert_eq!(tags.change(tag(20), None), tag(5 << 13 | 20));
        assert_eq!(tags.change(tag(5 << 13 | 20), None), None, "it is as it should be");
        assert_eq!(tags.change(tag(7 << 13 | 30), None), tag(30));
        assert_eq!(tags.change(None, None), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["10", "10:", ":20", "0:20", "10:4095", "10:untagged", "10:20@", "a:b", ""] {
            assert!(text.parse::<Map>().is_err(), "{text}");
        }
        for text in ["20", "20:8", "0:1", "20:-1", "untagged:1"] {
            assert!(text.parse::<Priority>().is_err(), "{text}");
        }
    }

    #[test]
    fn tags_are_shown() {
        for (tag, text) in [
            (None, "untagged"),
            (tag(10), "VLAN 10"),
            (tag(5 << 13 | 20), "VLAN 20 priority 5"),
            (Some(Vlan { proto: 0x88a8, tci: 3 }), "VLAN 3 (0x88a8)"),
        ] {
            assert_eq!(Shown(tag).to_string(), text);
        }
    }
}
