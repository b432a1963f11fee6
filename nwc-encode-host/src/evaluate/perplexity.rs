//! Perplexity of language models: a text in windows, each token but the first predicted once.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{log_sum, outputs, run, units};
use crate::forward::Tokens;
use crate::progress::Progress;
use crate::samples::{Data, Limits, Samples, window};
use crate::subject::Subject;
use crate::{Error, Result};

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Negative logarithm of the likelihood of all predicted tokens, in nats.
    pub nll: f64,
    /// Predicted tokens.
    pub tokens: usize,
    /// Words of the text, separated by white space, where all of it was predicted.
    pub words: Option<usize>,
    /// Tokens of a window.
    pub length: usize,
}

impl Perplexity {
    /// Of a token.
    pub fn per_token(&self) -> f64 {
        (self.nll / self.tokens as f64).exp()
    }

    /// Of a word.
    pub fn per_word(&self) -> Option<f64> {
        Some((self.nll / self.words.filter(|&words| words > 0)? as f64).exp())
    }
}

/// Predicts a text: the whole of it as one string without special tokens. Window i has the inputs `ids[length * i..length * (i + 1)]` and
/// predicts the token after each; the last one may be shorter. `limits.samples` takes the first windows alone.
///
/// # Errors
/// If it is no language model, the data are no text, or as running the model.
pub fn perplexity(
    subject: &Subject<'_>,
    data: &Data,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Perplexity> {
    let tower = subject.forward.tower("decoder").map_err(|error| error.file(subject.path))?;
    let (ids, mut words) = match data {
        Data::Text(text) => {
            (Cow::Owned(subject.tokenizer()?.text(text)?), Some(text.split_whitespace().count()))
        }
        Data::Tokens(ids) => (Cow::Borrowed(&ids[..]), None),
        Data::Sequences(_) | Data::Images(_) => {
            return Err(Error::input("is no text").remedy("give a text, or its tokens as one tensor [n]"));
        }
    };
    if ids.len() < 2 {
        return Err(Error::input("the text has no token to predict").remedy("give a longer one"));
    }
    let length = window(subject, tower, limits.length)?;
    let mut end = ids.len() - 1;
    if let Some(windows) = limits.samples
        && windows < end.div_ceil(length)
    {
        end = windows * length;
        words = None;
    }
    // Whole windows together; the last one, if it is shorter, alone.
    let whole = end / length * length;
    let together = Samples::texts_together(length) * length;
    let ends = (0..whole).step_by(together).map(|first| (first, (first + together).min(whole), length));
    let rest = (whole < end).then(|| (whole, end, end - whole));
    let ranges: Vec<(usize, usize, usize)> = ends.chain(rest).collect();
    let batches = ranges.iter().map(|&(first, end, length)| Tokens::new(ids[first..end].to_vec(), length));
    let samples = Samples::of_batches(batches.collect::<Result<_>>()?);
    progress.begin("predicting", units(tower, &samples));
    let mut nll = 0.0;
    run(subject, tower, &samples, progress, |batch, features, head| {
        let first = ranges[batch].0;
        outputs(tower, head, &features, |rows, vocabulary, logits| {
            let targets = &ids[first + rows.start + 1..=first + rows.end];
            if let Some(id) = targets.iter().find(|&&id| id as usize >= vocabulary) {
                return Err(Error::input(format!("token {id} is none of the model's {vocabulary}"))
                    .remedy("use the model's own tokenizer.json"));
            }
            let losses: Vec<f64> = logits
                .par_chunks(vocabulary)
                .zip(targets)
                .map(|(row, &target)| {
                    let (largest, log) = log_sum(row);
                    log - f64::from(row[target as usize] - largest)
                })
                .collect();
            nll += losses.iter().sum::<f64>();
            Ok(())
        })
    })?;
    Ok(Perplexity { nll, tokens: end, words, length })
}
