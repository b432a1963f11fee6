//! Tensors with rates of their own, and the search for all steps that a model has then.

use regex::Regex;

use super::RATE_WINDOW;
use super::plan::{ClassSpacing, OCTAVE};
use super::rate::next_step;

/// Steps from 2^-8 to 2^2 of a row's deviation: 8 bits a weight and more to nearly none.
pub(super) const RATE_STEPS: std::ops::RangeInclusive<i32> = -8 * 512..=2 * 512;
/// How far below the limit it is aimed at, in bits a weight, and how far from there is near enough: a step is 0.002.
pub(super) const AIM: f64 = 0.003;
const NEAR: f64 = 0.0012;

/// A rate for tensors of some names.
#[derive(Debug, Clone)]
pub struct Pin {
    /// Which tensors: of those that match, the ones that no pin before it names.
    pub names: Regex,
    /// Bits a weight of their data, all of them together; reached within [`RATE_WINDOW`], never exceeded.
    pub bits: f64,
}

/// The coded tensors of a pin.
#[derive(Debug)]
pub(super) struct Pinned {
    /// The number of the pin.
    pub(super) pin: usize,
    /// Their places among the plans.
    pub(super) members: Vec<usize>,
    /// Number of their weights.
    pub(super) weights: usize,
    /// How much coarser their steps are, next to all others', than they were measured to be.
    moved: i32,
}

impl Pinned {
    /// Tensors whose steps are as they were measured.
    pub(super) fn new(pin: usize, members: Vec<usize>, weights: usize) -> Self {
        Self { pin, members, weights, moved: 0 }
    }

    /// Makes steps coarser by so much than they were measured to be; says by how much steps, and their classes, then change.
    pub(super) fn move_to(&mut self, moved: i32, spacing: ClassSpacing) -> (i32, i32) {
        let classes = |moved: i32| (f64::from(moved) / (spacing.0 * OCTAVE)).round() as i32;
        let before = std::mem::replace(&mut self.moved, moved);
        (moved - before, classes(moved) - classes(before))
    }
}

/// Steps of a whole model, in 1/512 octave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Steps {
    /// Of the tensors that are not pinned.
    pub(super) free: i32,
    /// Of each pin's.
    pub(super) pinned: Vec<i32>,
}

/// The bytes that count against the limits.
#[derive(Debug)]
pub(super) struct Taken {
    /// Against the model's.
    pub(super) model: f64,
    /// Against each pin's.
    pub(super) pinned: Vec<f64>,
}

/// The search for a step at which something takes as many bytes as it may.
#[derive(Debug)]
pub(super) struct Hunt {
    /// Bytes that it may take.
    pub(super) limit: f64,
    /// Bytes of a bit a weight, of all weights that the limit is for.
    pub(super) per_bit: f64,
    /// Bytes that an octave makes, about.
    per_octave: f64,
    step: i32,
    tried: Vec<(i32, f64)>,
}

impl Hunt {
    /// For so many `weights`, of which `moving` ones have the step that is searched for; from `step` on.
    pub(super) fn new(limit: f64, weights: f64, moving: f64, step: i32) -> Self {
        Self { limit, per_bit: weights / 8.0, per_octave: moving / 8.0, step, tried: Vec::new() }
    }

    fn aim(&self) -> f64 {
        self.limit - AIM * self.per_bit
    }

    /// How far so many bytes are from where it is aimed at; up to 1 is near enough.
    fn miss(&self, bytes: f64) -> f64 {
        (bytes - self.aim()).abs() / (NEAR * self.per_bit)
    }

    /// How far below the limit so many bytes are, in bits a weight.
    fn below(&self, bytes: f64) -> f64 {
        (self.limit - bytes) / self.per_bit
    }

    /// Goes on to another step, unless there is none. `alone` says that bytes depend on this step only, so that what was tried holds.
    fn go_on(&mut self, bytes: f64, alone: bool) -> bool {
        self.tried.push((self.step, bytes));
        let next = |tried: &[(i32, f64)]| next_step(tried, self.aim(), self.per_octave, &RATE_STEPS);
        let last = self.tried.len() - 1;
        let step = next(&self.tried).or_else(|| if alone { None } else { next(&self.tried[last..]) });
        self.step = step.unwrap_or(self.step);
        step.is_some()
    }
}

/// The searches for the steps of all pins, and of the model: each moves its own step, all at once, for they hardly depend on each other.
#[derive(Debug)]
pub(super) struct Hunts {
    /// Of each pin.
    pub(super) pinned: Vec<Hunt>,
    /// Of all other tensors, so that the model meets its target.
    pub(super) free: Option<Hunt>,
    /// Their step if it is not searched for.
    pub(super) fixed: i32,
}

impl Hunts {
    /// The steps to try.
    pub(super) fn steps(&self) -> Steps {
        let pinned = self.pinned.iter().map(|hunt| hunt.step).collect();
        Steps { free: self.free.as_ref().map_or(self.fixed, |hunt| hunt.step), pinned }
    }

    /// Forgets what was tried: from now on it is tried in another way, from these steps on.
    pub(super) fn restart(&mut self, steps: &Steps) {
        for (hunt, &step) in
            self.pinned.iter_mut().chain(&mut self.free).zip(steps.pinned.iter().chain([&steps.free]))
        {
            hunt.step = step;
            hunt.tried.clear();
        }
    }

    /// What the model would take if pinned tensors took what they are aimed at: what is left to the others does not move while those are searched for.
    pub(super) fn left_to(&self, taken: &Taken) -> f64 {
        let off = self.pinned.iter().zip(&taken.pinned).map(|(hunt, bytes)| bytes - hunt.aim());
        taken.model - off.sum::<f64>()
    }

    fn with(&self, taken: &Taken) -> impl Iterator<Item = (&Hunt, f64)> {
        let free = self.free.as_ref().map(|hunt| (hunt, taken.model));
        self.pinned.iter().zip(taken.pinned.clone()).chain(free)
    }

    /// How far all are from where they are aimed at; up to 1 is near enough.
    pub(super) fn miss(&self, taken: &Taken) -> f64 {
        let left = Taken { model: self.left_to(taken), pinned: taken.pinned.clone() };
        self.with(&left).map(|(hunt, bytes)| hunt.miss(bytes)).fold(0.0, f64::max)
    }

    /// How far below their limits all are, in bits a weight; `None` if one is above.
    pub(super) fn below(&self, taken: &Taken) -> Option<f64> {
        self.with(taken)
            .map(|(hunt, bytes)| hunt.below(bytes))
            .try_fold(0.0, |most: f64, below| (below >= 0.0).then(|| most.max(below)))
    }

    /// Goes on to other steps where what was taken is not near, or not in its window if that is `enough`; says whether there are any.
    pub(super) fn go_on(&mut self, taken: &Taken, window_is_enough: bool) -> bool {
        let left = self.left_to(taken);
        let alone = self.pinned.len() + usize::from(self.free.is_some()) == 1;
        let free = self.free.as_mut().map(|hunt| (hunt, taken.model, left));
        let pinned = self.pinned.iter_mut().zip(&taken.pinned).map(|(hunt, &bytes)| (hunt, bytes, bytes));
        let mut moved = false;
        for (hunt, counted, searched) in pinned.chain(free) {
            let met = window_is_enough && (0.0..=RATE_WINDOW).contains(&hunt.below(counted));
            moved |= !met && hunt.miss(searched) > 1.0 && hunt.go_on(searched, alone);
        }
        moved
    }
}
