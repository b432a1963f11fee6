//! From the last hidden state to embeddings and logits.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::attention::attend;
use super::feed::{Activation, Mlp};
use super::input::Tokens;
use super::linear::{Linear, Taps};
use super::norm::Norm;
use super::stage::{Stage, TensorSpec};
use crate::parameters::Parameters;
use crate::{Error, Result};

/// Which position stands for all of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Pool {
    /// Each for itself.
    Each,
    /// The first.
    First,
    /// The last.
    Last,
    /// The first with this token; the first of all where there is none.
    Token(u32),
    /// The first with the largest token.
    LargestToken,
    /// One that looks at all of them.
    Probe(Box<Probe>),
}

/// Attention of one learned query to all positions, and a feed-forward network: the pooling of `SigLIP`.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// The query, `[1, 1, width]`.
    pub probe: TensorSpec,
    /// Makes queries.
    pub query: Linear,
    /// Makes keys.
    pub key: Linear,
    /// Makes values.
    pub value: Linear,
    /// Joins the heads.
    pub output: Linear,
    /// Heads of attention.
    pub heads: usize,
    /// Of the feed-forward network.
    pub norm: Norm,
    /// The feed-forward network.
    pub mlp: Mlp,
}

/// The last part of a tower.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Normalises all positions.
    pub norm: Option<Norm>,
    /// Picks one.
    pub pool: Pool,
    /// Projects it: to an embedding, or to the logits of tokens.
    pub projection: Option<Linear>,
    /// What is done to the projection.
    pub activation: Option<Activation>,
}

impl Head {
    /// Outputs `[batch, positions, out]` of the last hidden state `[batch, length, width]`: one position if they are pooled.
    ///
    /// Logits of many tokens take much memory: where few positions are wanted, hand over only those.
    ///
    /// # Errors
    /// If it needs `tokens`, to find the one that stands for its text, and there are none.
    ///
    /// # Panics
    /// If `parameters` are not the head's.
    pub fn forward<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        hidden: Tensor<B, 3>,
        tokens: Option<&Tokens>,
        taps: &mut dyn Taps<B>,
    ) -> Result<Tensor<B, 3>> {
        let [batch, length, width] = hidden.dims();
        let mut x = hidden.reshape([batch * length, width]);
        if let Some(norm) = &self.norm {
            x = norm.apply(parameters, x);
        }
        let at = |position: &dyn Fn(usize) -> usize| {
            let rows: Vec<i64> = (0..batch).map(|i| (i * length + position(i)) as i64).collect();
            Tensor::<B, 1, Int>::from_data(TensorData::new(rows, [batch]), &x.device())
        };
        let rows = match &self.pool {
            Pool::Each | Pool::Probe(_) => None,
            Pool::First => Some(at(&|_| 0)),
            Pool::Last => Some(at(&|_| length - 1)),
            Pool::Token(_) | Pool::LargestToken => {
                let tokens = tokens
                    .filter(|tokens| (tokens.texts(), tokens.length()) == (batch, length))
                    .ok_or_else(|| Error::input("the tokens are needed to find the end of each text"))?;
                let text = |i: usize| &tokens.ids()[i * length..][..length];
                let place = |i: usize| match self.pool {
                    Pool::Token(token) => text(i).iter().position(|&id| id == token).unwrap_or(0),
                    _ => (0..length).rev().max_by_key(|&at| text(i)[at]).unwrap_or(0),
                };
                Some(at(&place))
            }
        };
        if let Some(rows) = rows {
            x = x.select(0, rows);
        }
        if let Pool::Probe(probe) = &self.pool {
            x = probe.forward(parameters, x, batch, taps);
        }
        if let Some(projection) = &self.projection {
            taps.inputs(&[projection], &x);
            x = projection.apply(parameters, x);
        }
        if let Some(activation) = self.activation {
            x = activation.apply(x);
        }
        let [rows, out] = x.dims();
        Ok(x.reshape([batch, rows / batch, out]))
    }
}

impl Stage for Head {
    fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors: Vec<_> = self.norm.iter().flat_map(Norm::tensors).collect();
        if let Pool::Probe(probe) = &self.pool {
            tensors.push(probe.probe.clone());
            tensors.extend(probe.norm.tensors());
        }
        tensors.extend(self.groups().concat().into_iter().flat_map(Linear::tensors));
        tensors
    }

    fn groups(&self) -> Vec<Vec<&Linear>> {
        let probe = if let Pool::Probe(probe) = &self.pool { probe.groups() } else { Vec::new() };
        probe.into_iter().chain(self.projection.iter().map(|projection| vec![projection])).collect()
    }
}

impl Probe {
    fn groups(&self) -> Vec<Vec<&Linear>> {
        let attention = [vec![&self.query], vec![&self.key, &self.value], vec![&self.output]];
        attention.into_iter().chain(self.mlp.groups()).collect()
    }

    /// One row for each of `batch` inputs, `x` `[batch * length, width]`.
    fn forward<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        x: Tensor<B, 2>,
        batch: usize,
        taps: &mut dyn Taps<B>,
    ) -> Tensor<B, 2> {
        let heads = |y: Tensor<B, 2>, batch: usize| {
            let [rows, width] = y.dims();
            y.reshape([batch, rows / batch, self.heads, width / self.heads]).swap_dims(1, 2)
        };
        let probe = parameters.get(&self.probe.name);
        taps.inputs(&[&self.query], &probe);
        let query = heads(self.query.apply(parameters, probe), 1);
        let [_, count, one, dim] = query.dims();
        taps.inputs(&[&self.key, &self.value], &x);
        let key = heads(self.key.apply(parameters, x.clone()), batch);
        let value = heads(self.value.apply(parameters, x), batch);
        let joined = attend(query.expand([batch, count, one, dim]), key, value, None, None);
        taps.inputs(&[&self.output], &joined);
        let x = self.output.apply(parameters, joined);
        x.clone() + self.mlp.forward(parameters, self.norm.apply(parameters, x), taps)
    }
}
