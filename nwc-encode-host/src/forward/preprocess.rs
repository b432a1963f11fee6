//! From pictures to pixel values, as `preprocessor_config.json` says.

use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::Deserialize;

pub use super::resize::Picture;
use super::{config, resize::Filter};
use crate::{Error, Result};

/// How pictures are prepared.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "as the file has them")]
pub struct Preprocessor {
    do_resize: bool,
    size: Size,
    resample: Option<u8>,
    do_center_crop: bool,
    crop_size: Option<Size>,
    do_rescale: bool,
    rescale_factor: f64,
    do_normalize: bool,
    image_mean: [f64; 3],
    image_std: [f64; 3],
}

/// A size as configurations have it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Exact {
        height: usize,
        width: usize,
    },
    ShortestEdge {
        shortest_edge: usize,
    },
    /// Of the shortest edge when resizing, of all edges when cropping.
    Edge(usize),
}

impl Default for Preprocessor {
    /// What CLIP's is where the file says nothing.
    fn default() -> Self {
        Self {
            do_resize: true,
            size: Size::ShortestEdge { shortest_edge: 224 },
            resample: None,
            do_center_crop: false,
            crop_size: None,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
        }
    }
}

impl Preprocessor {
    /// Reads the `preprocessor_config.json` of a model folder.
    ///
    /// # Errors
    /// If it cannot be read, or asks for what is not supported.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let bytes = std::fs::read(&path).map_err(|error| Error::io("cannot read", &path, error))?;
        Self::read(&bytes).map_err(|error| error.file(path))
    }

    /// Reads the content of such a file.
    ///
    /// # Errors
    /// If it is none, or asks for what is not supported.
    pub fn read(config: &[u8]) -> Result<Self> {
        let preprocessor: Self = config::parse(config)?;
        preprocessor.filter()?;
        let sizes = [preprocessor.size, preprocessor.crop_size.unwrap_or(preprocessor.size)];
        if sizes.into_iter().any(Size::is_unusable) {
            return Err(Error::input(
                "images without pixels, or of more than 16384 a side, are not supported",
            )
            .remedy("take the file from the model's publisher"));
        }
        Ok(preprocessor)
    }

    /// The filter: bicubic where none is stated, as for CLIP and `SigLIP`.
    fn filter(&self) -> Result<Filter> {
        match self.resample {
            Some(2) => Ok(Filter::Bilinear),
            None | Some(3) => Ok(Filter::Bicubic),
            Some(other) => Err(Error::input(format!("resampling of the kind {other} is not supported"))
                .remedy("use 2 (bilinear) or 3 (bicubic)")),
        }
    }

    /// A PNG or JPEG file, prepared: resized and cropped.
    ///
    /// # Errors
    /// If it cannot be read, or is no such file.
    pub fn open_picture(&self, path: &Path) -> Result<Picture> {
        let bytes = std::fs::read(path).map_err(|error| Error::io("cannot read", path, error))?;
        let picture = image::load_from_memory(&bytes).map_err(|error| {
            Error::input(format!("cannot be read as an image: {error}"))
                .file(path)
                .remedy("give a PNG or JPEG file")
                .source(error)
        })?;
        let picture = picture.to_rgb8();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        self.prepare(&Picture { width, height, pixels: picture.into_raw() }).map_err(|error| error.file(path))
    }

    /// A picture, resized and cropped as the file says.
    ///
    /// # Errors
    /// If it has no pixels.
    pub fn prepare(&self, picture: &Picture) -> Result<Picture> {
        let Picture { width, height, .. } = *picture;
        if width == 0 || height == 0 {
            return Err(Error::input("has no pixels").remedy("leave it out"));
        }
        let mut prepared = picture.clone();
        if self.do_resize {
            let (width, height) = self.size.of(width, height);
            prepared = prepared.resized(width, height, self.filter()?);
        }
        if self.do_center_crop {
            let (width, height) = match self.crop_size.unwrap_or(self.size) {
                Size::Exact { height, width } => (width, height),
                Size::ShortestEdge { shortest_edge: edge } | Size::Edge(edge) => (edge, edge),
            };
            prepared = prepared.cropped(width, height);
        }
        Ok(prepared)
    }

    /// Pixel values `[batch, 3, height, width]` of bytes `[batch, height, width, 3]`, of pictures of the model's size.
    ///
    /// # Panics
    /// If these are not as many bytes.
    pub fn pixel_values<B: Backend>(
        &self,
        bytes: &[u8],
        [batch, height, width]: [usize; 3],
        device: &B::Device,
    ) -> Tensor<B, 4> {
        let pixels = height * width;
        assert_eq!(bytes.len(), batch * pixels * 3);
        let mut values = vec![0.0_f32; bytes.len()];
        for channel in 0..3 {
            // A byte has 256 values: each is computed once.
            let table: [f32; 256] = std::array::from_fn(|byte| self.value(channel, byte as u8));
            for picture in 0..batch {
                let from = &bytes[picture * pixels * 3..][..pixels * 3];
                let to = &mut values[(picture * 3 + channel) * pixels..][..pixels];
                for (value, pixel) in to.iter_mut().zip(from.as_chunks::<3>().0) {
                    *value = table[usize::from(pixel[channel])];
                }
            }
        }
        Tensor::from_data(TensorData::new(values, [batch, 3, height, width]), device)
    }

    fn value(&self, channel: usize, byte: u8) -> f32 {
        let mut value = f64::from(byte);
        if self.do_rescale {
            value *= self.rescale_factor;
        }
        if self.do_normalize {
            value = (value - self.image_mean[channel]) / self.image_std[channel];
        }
        value as f32
    }
}

impl Size {
    /// Whether no picture can have it, or only one that is far too large.
    fn is_unusable(self) -> bool {
        let (width, height) = match self {
            Self::Exact { height, width } => (width, height),
            Self::ShortestEdge { shortest_edge: edge } | Self::Edge(edge) => (edge, edge),
        };
        [width, height].iter().any(|side| !(1..=1 << 14).contains(side))
    }

    /// The size to which a picture of this width and height is resized.
    fn of(self, width: usize, height: usize) -> (usize, usize) {
        match self {
            Self::Exact { height, width } => (width, height),
            Self::ShortestEdge { shortest_edge: edge } | Self::Edge(edge) => {
                let long = |side: usize| edge * side / width.min(height);
                if width <= height { (edge, long(height)) } else { (long(width), edge) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_edge_is_resized_and_the_middle_taken() {
        let config = br#"{"size": {"shortest_edge": 8}, "do_center_crop": true, "crop_size": {"height": 6, "width": 8}}"#;
        let preprocessor = Preprocessor::read(config).unwrap();
        let picture = Picture { width: 30, height: 16, pixels: vec![200; 30 * 16 * 3] };
        assert_eq!(preprocessor.size.of(30, 16), (15, 8));
        let prepared = preprocessor.prepare(&picture).unwrap();
        assert_eq!(prepared, Picture { width: 8, height: 6, pixels: vec![200; 8 * 6 * 3] });
    }

    #[test]
    fn older_files_state_sizes_as_numbers() {
        let preprocessor =
            Preprocessor::read(br#"{"size": 8, "crop_size": 6, "do_center_crop": true}"#).unwrap();
        let picture = Picture { width: 16, height: 30, pixels: vec![7; 30 * 16 * 3] };
        assert_eq!(preprocessor.prepare(&picture).unwrap().pixels.len(), 6 * 6 * 3);
    }

    #[test]
    fn other_filters_and_sizes_are_refused() {
        let error = |text: &str| Preprocessor::read(text.as_bytes()).unwrap_err().to_string();
        assert!(error(r#"{"resample": 0}"#).contains("kind 0 is not supported"));
        assert!(error(r#"{"size": 0}"#).contains("without pixels"));
        assert!(error(r#"{"size": "large"}"#).contains("configuration"));
    }
}
