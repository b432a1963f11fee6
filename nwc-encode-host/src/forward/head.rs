//! From the last hidden state to embeddings and logits.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::attention::{Hidden, attend};
use super::feed::{Activation, Mlp};
use super::input::Tokens;
use super::linear::{Linear, Taps};
use super::norm::Norm;
use super::stage::{Stage, TensorSpec};
use crate::parameters::Parameters;
use crate::{Error, Result};

/// Rows, each made as long as one.
pub(crate) fn unit<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    rows.clone() / rows.square().sum_dim(1).sqrt()
}

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
    /// Logits of many tokens take much memory: where few positions are wanted, hand over only those, or project
    /// [`features`](Self::features) a few rows at a time.
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
        let [batch, ..] = hidden.dims();
        let x = self.features(parameters, hidden, tokens, taps)?;
        let x = self.project(parameters, x, taps);
        let [rows, out] = x.dims();
        Ok(x.reshape([batch, rows / batch, out]))
    }

    /// The projection to the logits of each position's next token, if it is that.
    pub fn predicts(&self) -> Option<&Linear> {
        self.projection.as_ref().filter(|_| self.pool == Pool::Each)
    }

    /// What is projected, `[batch * positions, width]`. Taps are handed the inputs of the projection too.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn features<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        hidden: Tensor<B, 3>,
        tokens: Option<&Tokens>,
        taps: &mut dyn Taps<B>,
    ) -> Result<Tensor<B, 2>> {
        let [batch, length, width] = hidden.dims();
        let mut x = hidden.reshape([batch * length, width]);
        if let Some(norm) = &self.norm {
            x = norm.apply(parameters, x);
        }
        if let Some(positions) = self.positions(batch, length, tokens)? {
            let rows: Vec<i64> = (0..batch).zip(positions).map(|(i, at)| (i * length + at) as i64).collect();
            x = x.clone().select(0, Tensor::from_data(TensorData::new(rows, [batch]), &x.device()));
        }
        if let Pool::Probe(probe) = &self.pool {
            x = probe.forward(parameters, x, batch, taps);
        }
        if let Some(projection) = &self.projection {
            taps.inputs(&[projection], &x);
        }
        Ok(x)
    }

    /// Outputs `[rows, out]` of features.
    ///
    /// # Panics
    /// If `parameters` are not the head's.
    pub fn project<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        features: Tensor<B, 2>,
        taps: &mut dyn Taps<B>,
    ) -> Tensor<B, 2> {
        let x = match &self.projection {
            Some(projection) => projection.apply(parameters, features, taps),
            None => features,
        };
        match self.activation {
            Some(activation) => activation.apply(x),
            None => x,
        }
    }

    /// The position that stands for each of `batch` inputs; none if all of them count.
    pub(super) fn positions(
        &self,
        batch: usize,
        length: usize,
        tokens: Option<&Tokens>,
    ) -> Result<Option<Vec<usize>>> {
        Ok(match &self.pool {
            Pool::Each | Pool::Probe(_) => None,
            Pool::First => Some(vec![0; batch]),
            Pool::Last => Some(vec![length - 1; batch]),
            Pool::Token(_) | Pool::LargestToken => {
                let tokens = tokens
                    .filter(|tokens| (tokens.texts(), tokens.length()) == (batch, length))
                    .ok_or_else(|| Error::input("the tokens are needed to find the end of each text"))?;
                let place = |text: &[u32]| match self.pool {
                    Pool::Token(token) => text.iter().position(|&id| id == token).unwrap_or(0),
                    _ => (0..length).rev().max_by_key(|&at| text[at]).unwrap_or(0),
                };
                Some(tokens.ids().chunks(length).map(place).collect())
            }
        })
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

    fn norms(&self) -> Vec<&Norm> {
        let probe = if let Pool::Probe(probe) = &self.pool { Some(&probe.norm) } else { None };
        self.norm.iter().chain(probe).collect()
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
        let query = heads(self.query.apply(parameters, probe, taps), 1);
        let [_, count, one, dim] = query.dims();
        taps.inputs(&[&self.key, &self.value], &x);
        let key = heads(self.key.apply(parameters, x.clone(), taps), batch);
        let value = heads(self.value.apply(parameters, x, taps), batch);
        let joined = attend(query.expand([batch, count, one, dim]), key, value, Hidden::nothing(), None);
        taps.inputs(&[&self.output], &joined);
        let x = self.output.apply(parameters, joined, taps);
        x.clone() + self.mlp.forward(parameters, self.norm.apply(parameters, x), taps)
    }
}
