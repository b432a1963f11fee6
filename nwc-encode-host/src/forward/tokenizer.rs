//! From texts to tokens, by the `tokenizer.json` of a model.

use std::path::Path;

use super::input::Tokens;
use crate::{Error, Result};

/// Turns texts into tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Reads the `tokenizer.json` of a model folder.
    ///
    /// # Errors
    /// If it cannot be read, or needs what is not supported.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|error| Error::io("cannot read", &path, error))?;
        Self::read(&bytes).map_err(|error| error.file(path))
    }

    /// Reads the content of such a file.
    ///
    /// # Errors
    /// If it is none, or needs what is not supported.
    pub fn read(content: &[u8]) -> Result<Self> {
        let tokenizer = tokenizers::Tokenizer::from_bytes(content).map_err(|error| {
            Error::input(format!("cannot be used as a tokenizer: {error}"))
                .remedy("take the file from the model's publisher")
        })?;
        Ok(Self(tokenizer))
    }

    /// Texts, with the special tokens that begin and end them; cut and filled up as the file says. Where it does not say how, they are
    /// filled up to the longest, with token 0.
    ///
    /// # Errors
    /// If there are none, or they have no tokens.
    pub fn texts(&self, texts: &[&str]) -> Result<Tokens> {
        let encoded = self.0.encode_batch(texts.to_vec(), true).map_err(|error| failed(&*error))?;
        let length = encoded.iter().map(|text| text.get_ids().len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(length * texts.len());
        let mut padding = Vec::with_capacity(length * texts.len());
        for (before, text) in encoded.iter().enumerate() {
            ids.extend_from_slice(text.get_ids());
            padding.extend(text.get_attention_mask().iter().map(|&seen| seen == 0));
            ids.resize((before + 1) * length, 0);
            padding.resize((before + 1) * length, true);
        }
        Tokens::new(ids, length)?.with_padding(padding)
    }

    /// One text as it is, with no special tokens, neither cut nor filled up: for language models.
    ///
    /// # Errors
    /// If it cannot be turned into tokens.
    pub fn text(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokenizer = self.0.clone();
        tokenizer.with_truncation(None).map_err(|error| failed(&*error))?;
        tokenizer.with_padding(None);
        let encoded = tokenizer.encode(text, false).map_err(|error| failed(&*error))?;
        Ok(encoded.get_ids().to_vec())
    }
}

fn failed(error: &(dyn std::error::Error + Send + Sync)) -> Error {
    Error::input(format!("a text cannot be turned into tokens: {error}"))
}
