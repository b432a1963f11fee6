//! Zero-shot classification: the class whose prompts are closest to an image.

use serde::Deserialize;

use super::{normalise, outputs, run, units};
use crate::forward::Tower;
use crate::progress::Progress;
use crate::samples::{Data, Limits, Samples};
use crate::subject::Subject;
use crate::{Error, Result};

/// The prompts of each class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts(Vec<Vec<String>>);

#[derive(Deserialize)]
struct PromptsFile {
    prompts: Option<Vec<Vec<String>>>,
    classes: Option<Vec<String>>,
    templates: Option<Vec<String>>,
}

impl Prompts {
    /// Reads `prompts`, a list for each class, or `classes` and `templates` with {} where the class goes.
    ///
    /// # Errors
    /// If the file has neither, or a class has no prompts.
    pub fn read(content: &[u8]) -> Result<Self> {
        let bad = || {
            Error::input("has no prompts for each class").remedy(
                "give JSON with `prompts`, a list of texts for each class, or with `classes` and `templates`",
            )
        };
        let file: PromptsFile = serde_json::from_slice(content).map_err(|error| bad().source(error))?;
        let prompts = match file {
            PromptsFile { prompts: Some(prompts), .. } => prompts,
            PromptsFile { classes: Some(classes), templates: Some(templates), .. } => {
                let fill = |class: &String| templates.iter().map(|text| text.replace("{}", class)).collect();
                classes.iter().map(fill).collect()
            }
            _ => return Err(bad()),
        };
        if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
            return Err(bad());
        }
        Ok(Self(prompts))
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZeroShot {
    /// Images whose class was found.
    pub correct: usize,
    /// All of them.
    pub images: usize,
}

/// Classifies images. A class is the mean of its prompts' embeddings, each of length one.
///
/// # Errors
/// If the model does not compare images and texts, the data are no images with classes, or as running the model.
pub fn zero_shot(
    subject: &Subject<'_>,
    prompts: &Prompts,
    data: &Data,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<ZeroShot> {
    if subject.forward.similarity.is_none() {
        let problem =
            format!("models of the type {:?} do not compare images and texts", subject.forward.model_type);
        return Err(Error::input(problem).file(subject.path).remedy("give a CLIP or SigLIP model"));
    }
    let [text, vision] = ["text", "vision"].map(|name| subject.forward.tower(name));
    let (text, vision) = (text?, vision?);
    let no_classes = || {
        Error::input("has no images with classes").remedy(
            "give a .safetensors file with `images` and `labels`, or a folder with a folder of images for each class",
        )
    };
    let images = Samples::new(subject, vision, data, limits)?.ok_or_else(no_classes)?;
    let labels = images.labels().ok_or_else(no_classes)?;
    if let Some(label) = labels.iter().find(|&&label| label >= prompts.0.len()) {
        return Err(Error::input(format!("has class {label}, but there are prompts of {}", prompts.0.len()))
            .remedy("give the prompts of these classes with --prompts"));
    }
    let texts: Vec<&str> = prompts.0.iter().flatten().map(String::as_str).collect();
    let texts = Samples::texts(&texts, subject)?;
    progress.begin("zero-shot", units(text, &texts) + units(vision, &images));
    let (of_texts, width) = embeds(subject, text, &texts, progress)?;
    let mut rows = of_texts.chunks(width);
    let mut classes = Vec::new();
    for prompts in &prompts.0 {
        let mut mean = vec![0.0_f32; width];
        for row in rows.by_ref().take(prompts.len()) {
            mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x / prompts.len() as f32);
        }
        classes.extend(mean);
    }
    normalise(&mut classes, width);
    let (of_images, image_width) = embeds(subject, vision, &images, progress)?;
    if image_width != width {
        return Err(Error::input(format!("embeds texts in {width} dimensions, images in {image_width}"))
            .file(subject.path)
            .remedy("take the configuration from the model's publisher"));
    }
    let cosine =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let guess = |image: &[f32]| {
        let cosines: Vec<f64> = classes.chunks(width).map(|class| cosine(image, class)).collect();
        // Of equals the first.
        (0..cosines.len()).rev().max_by(|&a, &b| cosines[a].total_cmp(&cosines[b]))
    };
    let guesses = of_images.chunks(width).map(guess);
    let correct = guesses.zip(&labels).filter(|(guess, label)| *guess == Some(**label)).count();
    Ok(ZeroShot { correct, images: labels.len() })
}

/// Embeddings of length one, and their width.
fn embeds(
    subject: &Subject<'_>,
    tower: &Tower,
    samples: &Samples<'_>,
    progress: &dyn Progress,
) -> Result<(Vec<f32>, usize)> {
    let (mut all, mut width) = (Vec::new(), 1);
    run(subject, tower, samples, progress, |_, features, head| {
        outputs(tower, head, &features, |_, out, mut rows| {
            width = out;
            normalise(&mut rows, out);
            all.append(&mut rows);
            Ok(())
        })
    })?;
    Ok((all, width))
}
