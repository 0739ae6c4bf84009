//! A list of domains that also covers the names below them.

use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest name in text, without the dot at its end.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// The name of a domain, in lower case and without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Domain(String);

/// Why a text is no [`Domain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidDomain(String);

impl fmt::Display for InvalidDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no domain name: letters, digits, \"-\" and \"_\" in parts of at most {LABEL_MAX} \
             with dots between; names in other scripts begin with xn--",
            self.0
        )
    }
}

impl Error for InvalidDomain {}

impl FromStr for Domain {
    type Err = InvalidDomain;

    /// Takes `example.org`, and as the same thing `*.example.org` and `.example.org`.
    fn from_str(text: &str) -> Result<Self, InvalidDomain> {
        let name = text.strip_prefix('*').unwrap_or(text);
        let name = name.strip_prefix('.').unwrap_or(name);
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_label = |label: &str| {
            (1..=LABEL_MAX).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > NAME_MAX || !name.split('.').all(is_label) {
            return Err(InvalidDomain(text.to_owned()));
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

/// Which domains are blocked, and which pass all the same.
#[derive(Debug, Clone, clap::Args)]
pub struct Lists {
    /// Block this domain and all names below it; may be repeated
    #[arg(short, long, value_name = "DOMAIN")]
    block: Vec<Domain>,

    /// Block the domains of a file: a name on each line, or lines as in /etc/hosts
    #[arg(short = 'f', long, value_name = "FILE")]
    block_file: Vec<PathBuf>,

    /// Let this domain and all names below it pass, whatever is blocked; may be repeated
    #[arg(short, long, value_name = "DOMAIN")]
    allow: Vec<Domain>,

    /// Let the domains of a file pass
    #[arg(long, value_name = "FILE")]
    allow_file: Vec<PathBuf>,
}

impl Lists {
    /// The domains that are blocked, and those that pass.
    ///
    /// # Errors
    ///
    /// As [`Domains::gather`].
    pub fn gather(&self) -> Result<(Domains, Domains), Box<dyn Error>> {
        let blocked = Domains::gather(&self.block, &self.block_file)?;
        Ok((blocked, Domains::gather(&self.allow, &self.allow_file)?))
    }
}

/// Domains, each with all names below it.
#[derive(Debug, Clone, Default)]
pub struct Domains(HashSet<String>);

impl Domains {
    /// The domains given one by one, and those of files: a name on each line, or lines as in
    /// `/etc/hosts`, of which the names count that have a dot. `#` begins a comment.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or a line of it is neither.
    pub fn gather<P: AsRef<Path>>(names: &[Domain], files: &[P]) -> Result<Self, Box<dyn Error>> {
        let mut domains = Self(names.iter().map(|domain| domain.0.clone()).collect());
        for path in files {
            let path = path.as_ref();
            let text = fs::read_to_string(path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            for (number, line) in (1..).zip(text.lines()) {
                domains
                    .add_line(line)
                    .map_err(|error| format!("{}, line {number}: {error}", path.display()))?;
            }
        }
        Ok(domains)
    }

    /// Whether a name is one of the domains or below one. Case does not matter.
    #[must_use]
    pub fn cover(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let mut rest = name.as_str();
        loop {
            if self.0.contains(rest) {
                return true;
            }
            match rest.split_once('.') {
                Some((_, parent)) => rest = parent,
                None => return false,
            }
        }
    }

    /// How many domains there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add_line(&mut self, line: &str) -> Result<(), InvalidDomain> {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace().peekable();
        let is_hosts_line = words.peek().is_some_and(|word| word.parse::<IpAddr>().is_ok());
        if is_hosts_line {
            // Such files also have this host's own names, and 0.0.0.0 as a name for itself.
            let is_domain = |word: &&str| word.contains('.') && word.parse::<IpAddr>().is_err();
            for word in words.filter(is_domain) {
                self.0.insert(word.parse::<Domain>()?.0);
            }
            return Ok(());
        }
        match (words.next(), words.next()) {
            (None, _) => Ok(()),
            (Some(word), None) => {
                self.0.insert(word.parse::<Domain>()?.0);
                Ok(())
            }
            (Some(_), Some(_)) => Err(InvalidDomain(line.trim().to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(lines: &str) -> Domains {
        let mut domains = Domains::default();
        lines.lines().for_each(|line| domains.add_line(line).expect("a good line"));
        domains
    }

    #[test]
    fn a_domain_covers_what_is_below_it_and_nothing_else() {
        let domains = domains("Example.org\n*.ads.test\n.tracker.test.");
        for name in
            ["example.org", "WWW.example.ORG.", "a.b.example.org", "ads.test", "x.tracker.test"]
        {
            assert!(domains.cover(name), "{name}");
        }
        for name in ["org", "notexample.org", "example.org.test", "", ".", "test", "example.orgx"] {
            assert!(!domains.cover(name), "{name}");
        }
    }

    #[test]
    fn lines_are_names_or_as_in_hosts() {
        let domains = domains(
            "# a list\n\nads.test # why\n0.0.0.0 a.test b.test\n::1 localhost ip6\n0.0.0.0 0.0.0.0",
        );
        let mut names: Vec<_> = domains.0.iter().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["a.test", "ads.test", "b.test"]);
        for bad in ["two words", "||ads.test^", "a..b", "0.0.0.0 a..b", "bücher.example"] {
            assert!(Domains::default().add_line(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_tells_file_and_line() {
        let path = std::env::temp_dir().join(format!("domains-{}", std::process::id()));
        fs::write(&path, "fine.test\nnot fine\n").expect("a file");
        let error = Domains::gather(&[], &[&path]).expect_err("a bad line").to_string();
        fs::remove_file(&path).expect("it is there");
        assert!(error.contains("line 2: \"not fine\""), "{error}");
        let error = Domains::gather(&[], &[&path]).expect_err("no file").to_string();
        assert!(error.starts_with("cannot read "), "{error}");
    }

    #[test]
    fn lengths_are_limited() {
        let label = "a".repeat(LABEL_MAX);
        assert!(label.parse::<Domain>().is_ok());
        assert!(format!("{label}a").parse::<Domain>().is_err());
        assert!([&*label; 4].join(".").parse::<Domain>().is_err());
    }
}
