//! Of what a file of second moments consists: which tensors share one, which experts have too few tokens for one of their own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::importance::OWN;
pub(super) use crate::importance::{COLUMNS, OUTPUTS, ROWS};

/// An expert with fewer tokens than this times its inputs takes the mixture's moments: with fewer than one a matrix has no full rank, and
/// its diagonal is mostly chance.
pub const TOKENS_PER_INPUT: u64 = 1;

/// Linear maps that share their inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The tensors of their weights.
    pub names: Vec<String>,
    /// Which matrix of a tensor of so many.
    pub stacked: Option<(usize, usize)>,
    /// Number of inputs.
    pub inputs: usize,
    /// Tokens that went in.
    pub tokens: u64,
    /// Sequences or images that these are of.
    pub samples: u64,
}

/// The experts of a layer, either into their hidden units or out of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mixture {
    /// The group that has all tokens of the layer's input; without one the experts' tokens together stand for it.
    pub whole: Option<usize>,
    /// The groups of the experts.
    pub members: Vec<usize>,
}

/// Squared gradients, summed over the positions of a sample: the mean over samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Dimensions of the tensor.
    pub shape: Vec<usize>,
    /// Sequences or images that it is of.
    pub samples: u64,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Only diagonals.
    pub diagonal: bool,
    /// Groups, in the order in which a model runs them.
    pub groups: Vec<Group>,
    /// Experts.
    pub mixtures: Vec<Mixture>,
    /// How much outputs matter, and rows and columns of tables: by the names of the file's tensors.
    #[serde(default)]
    pub sums: BTreeMap<String, Sums>,
}

/// An expert for which its layer's mixture stands in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fallback {
    /// The first of its tensors.
    pub tensor: String,
    /// Which matrix of it, if it has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert: Option<usize>,
    /// Inputs of the expert.
    pub inputs: usize,
    /// Tokens that it was sent.
    pub tokens: u64,
}

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// The groups of each of its matrices or diagonals: of several, the mean over the tokens of all of them.
    pub parts: Vec<Vec<usize>>,
}

/// What the file has, by the numbers of tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its tensors.
    pub outputs: Vec<Output>,
    /// Names that have another tensor's.
    pub shared: BTreeMap<String, String>,
    /// Experts without their own.
    pub fallbacks: Vec<Fallback>,
}

impl Group {
    /// The name of its own moments.
    fn own(&self) -> String {
        match self.stacked {
            None => format!("{OWN}{}", self.names[0]),
            Some((index, _)) => format!("{OWN}{}[{index}]", self.names[0]),
        }
    }
}

impl Layout {
    /// Adds what another has.
    pub fn append(&mut self, other: &Self) {
        let offset = self.groups.len();
        self.groups.extend(other.groups.iter().cloned());
        self.mixtures.extend(other.mixtures.iter().map(|mixture| Mixture {
            whole: mixture.whole.map(|group| group + offset),
            members: mixture.members.iter().map(|group| group + offset).collect(),
        }));
        self.sums.extend(other.sums.clone());
    }

    /// Adds the tokens of another run of the same model; false if it is of something else.
    #[must_use]
    pub fn count(&mut self, other: &Self) -> bool {
        let bare = |layout: &Self| {
            let mut layout = layout.clone();
            layout.groups.iter_mut().for_each(|group| (group.tokens, group.samples) = (0, 0));
            layout.sums.values_mut().for_each(|sums| sums.samples = 0);
            layout
        };
        if bare(self) != bare(other) {
            return false;
        }
        for (group, other) in self.groups.iter_mut().zip(&other.groups) {
            group.tokens += other.tokens;
            group.samples += other.samples;
        }
        for (sums, other) in self.sums.values_mut().zip(other.sums.values()) {
            sums.samples += other.samples;
        }
        true
    }

    /// The mixture that stands in for a group.
    fn stand_in(&self, group: usize) -> Option<&Mixture> {
        let Group { inputs, tokens, .. } = self.groups[group];
        let starved = tokens < TOKENS_PER_INPUT * inputs as u64;
        self.mixtures.iter().find(|mixture| starved && mixture.members.contains(&group))
    }

    /// The groups whose tokens make up a group's moments.
    fn sources(&self, group: usize) -> Vec<usize> {
        match self.stand_in(group) {
            None => vec![group],
            Some(Mixture { whole: Some(whole), .. }) => vec![*whole],
            Some(mixture) => mixture.members.clone(),
        }
    }

    /// What a file of it has.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        // Pooled moments by the first expert of their mixture.
        let mut pooled: BTreeMap<usize, String> = BTreeMap::new();
        let square = |inputs: usize| if self.diagonal { vec![inputs] } else { vec![inputs; 2] };
        for (index, group) in self.groups.iter().enumerate() {
            let Group { ref names, stacked, inputs, tokens, .. } = *group;
            let name = &names[0];
            let stand_in = self.stand_in(index);
            let output = |name: &String, parts| Output { name: name.clone(), shape: square(inputs), parts };
            // Whose moments the names have.
            let first = match (stacked, stand_in) {
                (Some((0, experts)), _) => {
                    let mut parts = vec![Vec::new(); experts];
                    for (other, group) in self.groups.iter().enumerate() {
                        if let Some((expert, _)) = group.stacked.filter(|_| group.names[0] == *name) {
                            parts[expert] = self.sources(other);
                        }
                    }
                    let mut output = output(name, parts);
                    output.shape.insert(0, experts);
                    plan.outputs.push(output);
                    name.clone()
                }
                (Some(_), _) => name.clone(),
                (None, None) => {
                    plan.outputs.push(output(name, vec![vec![index]]));
                    name.clone()
                }
                (None, Some(Mixture { whole: Some(whole), .. })) => self.groups[*whole].names[0].clone(),
                (None, Some(mixture)) => pooled
                    .entry(mixture.members[0])
                    .or_insert_with(|| {
                        plan.outputs.push(output(name, vec![mixture.members.clone()]));
                        name.clone()
                    })
                    .clone(),
            };
            let others = names.iter().filter(|name| **name != first);
            plan.shared.extend(others.map(|name| (name.clone(), first.clone())));
            if stand_in.is_some() {
                plan.fallbacks.push(Fallback {
                    tensor: name.clone(),
                    expert: stacked.map(|(expert, _)| expert),
                    inputs,
                    tokens,
                });
                if tokens > 0 {
                    plan.outputs.push(output(&group.own(), vec![vec![index]]));
                }
            }
        }
        plan
    }

    /// A number for each tensor of a plan, a list for each of several matrices: summed over the groups that each is of.
    pub fn counts(&self, plan: &Plan, count: impl Fn(&[&Group]) -> u64) -> Value {
        let counts = plan.outputs.iter().map(|output| {
            let of =
                |part: &Vec<usize>| count(&part.iter().map(|&group| &self.groups[group]).collect::<Vec<_>>());
            let value = match &output.parts[..] {
                [part] if !self.is_stack(output) => json!(of(part)),
                parts => json!(parts.iter().map(of).collect::<Vec<_>>()),
            };
            (output.name.clone(), value)
        });
        Value::Object(counts.collect())
    }

    /// Whether a tensor has a dimension of experts.
    fn is_stack(&self, output: &Output) -> bool {
        output.shape.len() > if self.diagonal { 1 } else { 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, inputs: usize, tokens: u64) -> Group {
        Group {
            names: vec![format!("{name}.w1"), format!("{name}.w3")],
            stacked: None,
            inputs,
            tokens,
            samples: 1,
        }
    }

    #[test]
    fn starved_experts_take_the_mixture_and_keep_their_own() {
        let mut groups = vec![Group { names: vec!["router".to_owned()], ..group("", 8, 40) }];
        groups.extend([group("a", 8, 33), group("b", 8, 7), group("c", 8, 0)]);
        let mut layout = Layout {
            diagonal: false,
            groups,
            mixtures: vec![Mixture { whole: Some(0), members: vec![1, 2, 3] }],
            sums: BTreeMap::new(),
        };
        let names = |plan: &Plan| -> Vec<String> { plan.outputs.iter().map(|o| o.name.clone()).collect() };
        let plan = layout.plan();
        assert_eq!(names(&plan), ["router", "a.w1", "nwc.own:b.w1"]);
        assert_eq!(plan.shared["a.w3"], "a.w1");
        assert!(["b.w1", "b.w3", "c.w1", "c.w3"].iter().all(|name| plan.shared[*name] == "router"));
        assert_eq!(plan.fallbacks.iter().map(|f| f.tokens).collect::<Vec<_>>(), [7, 0]);

        // Without a group of all tokens the experts stand for it together, once.
        layout.mixtures[0].whole = None;
        let plan = layout.plan();
        assert_eq!(names(&plan), ["router", "a.w1", "b.w1", "nwc.own:b.w1"]);
        assert_eq!(plan.outputs[2].parts, [[1, 2, 3]]);
        assert_eq!((&plan.shared["b.w3"], &plan.shared["c.w1"]), (&"b.w1".to_owned(), &"b.w1".to_owned()));
        assert_eq!(layout.counts(&plan, |groups| groups.iter().map(|g| g.tokens).sum())["b.w1"], 40);

        // As many tokens as inputs are enough.
        let more = layout.clone();
        assert!(layout.count(&more));
        assert_eq!(layout.plan().fallbacks.len(), 1);
        layout.groups[0].inputs = 9;
        assert!(!layout.count(&more));
    }

    #[test]
    fn stacked_experts_have_one_tensor() {
        let stacked = |expert, tokens| Group {
            names: vec!["down".to_owned()],
            stacked: Some((expert, 2)),
            ..group("", 4, tokens)
        };
        let layout = Layout {
            diagonal: true,
            groups: vec![stacked(0, 9), stacked(1, 3)],
            mixtures: vec![Mixture { whole: None, members: vec![0, 1] }],
            sums: BTreeMap::new(),
        };
        let plan = layout.plan();
        assert_eq!(plan.outputs[0].shape, [2, 4]);
        assert_eq!(plan.outputs[0].parts, [vec![0], vec![0, 1]]);
        assert_eq!((plan.outputs[1].name.as_str(), plan.outputs.len()), ("nwc.own:down[1]", 2));
        assert!(plan.shared.is_empty());
        let tokens = layout.counts(&plan, |groups| groups.iter().map(|g| g.tokens).sum());
        assert_eq!(tokens, json!({ "down": [9, 12], "nwc.own:down[1]": 3 }));
    }
}
