//! Listens to the linear maps of a stage, and sums up what goes in.

use std::collections::HashMap;

use burn::backend::Flex;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::layout::{Group, Layout, Mixture};
use super::moment::Moment;
use crate::Result;
use crate::forward::{Linear, Part, Role, Taps, Watch};
use crate::progress::Progress;

/// The moments of a stage's linear maps.
pub(super) struct Collector<'a> {
    groups: Vec<Vec<Linear>>,
    moments: Vec<Moment>,
    /// The group of the first linear map of each, by its tensor and the place in it.
    index: HashMap<(String, usize), usize>,
    /// The rows of each batch that count, and of how many; none if it is all of them.
    relevant: &'a [Option<Rows>],
    batch: usize,
    progress: &'a dyn Progress,
}

/// Some rows of a batch.
pub(super) struct Rows {
    pub(super) all: usize,
    pub(super) rows: Tensor<Flex, 1, Int>,
}

impl Rows {
    /// Those that are marked.
    pub(super) fn new(marks: &[bool]) -> Self {
        let rows: Vec<i64> = (0..).zip(marks).filter(|(_, mark)| **mark).map(|(row, _)| row).collect();
        let count = rows.len();
        let rows = Tensor::from_data(TensorData::new(rows, [count]), &Device::<Flex>::default());
        Self { all: marks.len(), rows }
    }
}

/// Where in its tensor a linear map lies.
fn place(linear: &Linear) -> (String, usize) {
    let at = match &linear.part {
        Part::Whole => 0,
        Part::Rows(rows) => rows.start,
        Part::Stacked(index) => *index,
    };
    (linear.tensor.clone(), at)
}

impl<'a> Collector<'a> {
    /// Of a stage's groups.
    pub(super) fn new(
        groups: Vec<Vec<&Linear>>,
        diagonal: bool,
        relevant: &'a [Option<Rows>],
        progress: &'a dyn Progress,
    ) -> Self {
        let index = groups.iter().enumerate().map(|(index, group)| (place(group[0]), index)).collect();
        let moments = groups.iter().map(|group| Moment::new(group[0].inputs(), diagonal)).collect();
        let groups = groups.into_iter().map(|group| group.into_iter().cloned().collect()).collect();
        Self { groups, moments, index, relevant, batch: 0, progress }
    }

    /// What was summed up over so many samples.
    pub(super) fn finish(self, diagonal: bool, samples: u64) -> (Layout, Vec<Moment>) {
        let mut layout = Layout { diagonal, ..Layout::default() };
        let mut moments: Vec<Moment> = Vec::new();
        let mut router = None;
        // Groups that are parts of one tensor, with the number of their rows.
        let mut rows_of: HashMap<String, (usize, usize)> = HashMap::new();
        let mut experts: [Vec<usize>; 2] = Default::default();
        for (linears, moment) in self.groups.iter().zip(self.moments) {
            let first = &linears[0];
            let rows: usize = linears.iter().map(Linear::outputs).sum();
            if matches!(first.part, Part::Rows(_)) {
                // A tensor's error is the sum over its rows, each of which weighs its own inputs.
                if let Some((other, other_rows)) = rows_of.get_mut(&first.tensor) {
                    moments[*other] = moments[*other].mixed(*other_rows as f64, &moment, rows as f64);
                    layout.groups[*other].tokens = moments[*other].tokens;
                    *other_rows += rows;
                    continue;
                }
                rows_of.insert(first.tensor.clone(), (moments.len(), rows));
            }
            if first.role == Role::Router {
                router = Some(moments.len());
            }
            if first.expert.is_some() {
                experts[usize::from(first.role == Role::Down)].push(moments.len());
            }
            let mut names: Vec<String> = linears.iter().map(|linear| linear.tensor.clone()).collect();
            names.dedup();
            let stacked = match first.part {
                Part::Stacked(index) => Some((index, first.shape[0])),
                Part::Whole | Part::Rows(_) => None,
            };
            let (inputs, tokens) = (moment.inputs, moment.tokens);
            layout.groups.push(Group { names, stacked, inputs, tokens, samples });
            moments.push(moment);
        }
        for (members, whole) in experts.into_iter().zip([router, None]) {
            if !members.is_empty() {
                layout.mixtures.push(Mixture { whole, members });
            }
        }
        (layout, moments)
    }
}

impl Taps<Flex> for Collector<'_> {
    fn inputs(&mut self, linears: &[&Linear], inputs: &Tensor<Flex, 2>) {
        let group = self.index[&place(linears[0])];
        let relevant = self.relevant.get(self.batch).and_then(Option::as_ref);
        match relevant.filter(|relevant| relevant.all == inputs.dims()[0]) {
            Some(relevant) => self.moments[group].add(&inputs.clone().select(0, relevant.rows.clone())),
            None => self.moments[group].add(inputs),
        }
    }
}

impl Watch<Flex> for Collector<'_> {
    fn batch(&mut self, index: usize) -> Result<()> {
        self.progress.check()?;
        self.progress.advance(1);
        self.batch = index;
        Ok(())
    }
}
