//! The recorded budgets: a name and the instructions that it may take per packet, one per line.

const RECORDED: &str = include_str!("../budgets");

pub(crate) struct Budgets(Vec<(&'static str, f64)>);

impl Budgets {
    /// Those of `names`: one for each, and no others.
    pub(crate) fn read<const N: usize>(names: [&str; N]) -> Result<Self, String> {
        let lines = RECORDED.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut budgets = Vec::new();
        for line in lines {
            let budget = line.split_once(' ').and_then(|(name, budget)| {
                budget.trim().parse().ok().filter(|budget: &f64| *budget > 0.0).map(|n| (name, n))
            });
            budgets.push(budget.ok_or_else(|| format!("not a budget: {line:?}"))?);
        }
        let read = Self(budgets);
        if let Some(name) = names.iter().find(|name| read.find(name).is_none()) {
            return Err(format!("{name} has no budget"));
        }
        match read.0.iter().find(|(name, _)| !names.contains(name)) {
            Some((name, _)) => Err(format!("there is a budget for {name}, which is not counted")),
            None => Ok(read),
        }
    }

    /// The budget of one of the names that these were read for.
    pub(crate) fn of(&self, name: &str) -> f64 {
        self.find(name).expect("every name has a budget")
    }

    fn find(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, budget)| *budget)
    }
}
