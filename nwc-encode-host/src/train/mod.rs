//! Training learned codecs: the paper's (arXiv 2510.11234), and two whose synthesis is light.
//!
//! Rows are normalised, chunks of 16 rows of a column go through analysis, uniform noise stands in for rounding, a factorised density says what latents cost. The loss is
//! lambda times the squared error of a weight plus its bits times the cost of its level.

mod checkpoint;
mod data;
mod density;
mod evaluate;
mod network;
mod rounded;

use std::f64::consts::LN_2;
use std::path::Path;
use std::time::Instant;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::adam::Adam;
use crate::chunks::CHUNK;
use crate::device::{Compute, Device};
use crate::importance::LEVEL_COSTS;
use crate::parameters::{HostParameters, Parameters, count};
use crate::progress::Progress;
use crate::{Error, ErrorKind, Result};
pub(crate) use checkpoint::path_of as checkpoint_path;
use checkpoint::{Done, State};
use data::Chunk;
pub(crate) use data::{Data, Origin};
pub use evaluate::Point;
use evaluate::{Evaluation, evaluate, tables, upload};
pub(crate) use network::{LATENTS, Network};

/// Chunks that tables are fitted to, and that are coded with them: for the curve, and at the end.
const CURVE_CHUNKS: (usize, usize) = (2048, 1024);
const FINAL_CHUNKS: (usize, usize) = (16_384, 16_384);
/// Chunks that tell how a hidden layer is rounded best.
const ROUNDING_CHUNKS: usize = 1024;
/// The density learns faster than the networks by this factor: its few parameters cannot overshoot far.
const DENSITY_RATE: f64 = 10.0;
/// What a step draws is the stream of its number; parameters begin with the last stream.
const INITIAL_STREAM: u64 = u64::MAX;

/// How to train.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) network: Network,
    /// What a squared error costs next to a bit.
    pub(crate) lambda: f64,
    pub(crate) steps: usize,
    /// Chunks a step, as many of each level.
    pub(crate) batch: usize,
    /// The peak of the learning rate.
    pub(crate) rate: f64,
    pub(crate) seed: u64,
    /// Steps between two points of the curve, and between two checkpoints.
    pub(crate) evaluate_every: usize,
}

impl Settings {
    /// What must be the same for a training to be resumed, by option.
    fn options(&self) -> Vec<(String, String)> {
        let options = [
            ("--profile", format!("{:?}", self.network.profile).to_lowercase()),
            ("--width", self.network.width.to_string()),
            ("--lambda", self.lambda.to_string()),
            ("--steps", self.steps.to_string()),
            ("--batch", self.batch.to_string()),
            ("--learning-rate", self.rate.to_string()),
            ("--seed", self.seed.to_string()),
            ("--evaluate-every", self.evaluate_every.to_string()),
        ];
        options.map(|(option, value)| (option.to_owned(), value)).to_vec()
    }

    fn rng(&self, stream: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream);
        rng
    }

    fn initial(&self) -> HostParameters {
        let mut rng = self.rng(INITIAL_STREAM);
        let mut parameters = self.network.initial(self.lambda, &mut rng);
        density::initial(LATENTS, &mut rng, &mut parameters);
        parameters
    }
}

/// A point on the way: of some held-out chunks, with rounded latents and tables.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// After so many steps.
    pub step: usize,
    /// What training makes less, lambda times nMSE and the costs of bits, levels equally often.
    pub loss: f64,
    /// Of the levels in the paper's parts.
    #[serde(flatten)]
    pub point: Point,
}

/// Numbers of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Of the network that makes latents of chunks.
    pub analysis: usize,
    /// Of the network that makes chunks of latents: what decoders need.
    pub synthesis: usize,
    /// Of the table of levels, which both share.
    pub levels: usize,
    /// Of the density, which tables replace once it is learned.
    pub density: usize,
}

/// A trained codec.
#[derive(Debug, Clone)]
pub(crate) struct Trained {
    pub(crate) codec: Vec<u8>,
    pub(crate) levels: Vec<Point>,
    pub(crate) mixture: Point,
    pub(crate) curve: Vec<CurvePoint>,
    pub(crate) sizes: Sizes,
    /// Of all sessions, if it was resumed.
    pub(crate) seconds: f64,
}

/// Trains. The checkpoint is written at each point of the curve and on an interruption, and removed by nobody.
///
/// # Errors
/// A checkpoint that cannot be resumed from or written, a loss that is no number any more, an interruption, no such device.
pub(crate) fn train(
    settings: &Settings,
    data: &Data,
    device: Device,
    checkpoint: &Path,
    resume: bool,
    progress: &dyn Progress,
) -> Result<Trained> {
    let job = Job { settings, data, checkpoint, checksum: data.checksum(), progress };
    device.compute(Training { job: &job, resume })
}

/// To be trained on some device.
struct Training<'j> {
    job: &'j Job<'j>,
    resume: bool,
}

impl Compute for Training<'_> {
    type Output = Trained;

    fn on<A: AutodiffBackend>(self, device: &A::Device) -> Result<Trained> {
        self.job.run::<A>(device, self.resume)
    }
}

struct Job<'a> {
    settings: &'a Settings,
    data: &'a Data,
    checkpoint: &'a Path,
    checksum: u32,
    progress: &'a dyn Progress,
}

impl Job<'_> {
    fn run<A: AutodiffBackend>(&self, device: &A::Device, resume: bool) -> Result<Trained> {
        let Self { settings, progress, .. } = *self;
        let mut state: State<A::InnerBackend> = if resume {
            checkpoint::read(self.checkpoint, settings, self.checksum, device)?
        } else {
            let mut initial = settings.initial();
            if settings.network.is_light() {
                network::align(&mut initial, &self.data.training);
            }
            let parameters = Parameters::new(&initial, device);
            State { adam: Adam::new(&parameters, |_| true), parameters, progress: Done::default() }
        };
        let started = Instant::now();
        let before = state.progress.seconds;
        let weights = |steps: usize| (steps * settings.batch * CHUNK) as u64;
        progress.begin("training", weights(settings.steps));
        progress.advance(weights(state.progress.step));
        loop {
            let step = state.progress.step;
            let last = step == settings.steps;
            let missing = state.progress.curve.last().is_none_or(|point| point.step < step);
            if missing && (last || step.is_multiple_of(settings.evaluate_every)) {
                state.progress.seconds = before + started.elapsed().as_secs_f64();
                self.add_to_curve(&mut state, device)?;
                checkpoint::write(self.checkpoint, settings, self.checksum, &state)?;
            }
            if last {
                break;
            }
            if let Err(error) = progress.check() {
                state.progress.seconds = before + started.elapsed().as_secs_f64();
                return Err(self.interrupted(error, &state));
            }
            self.step::<A>(&mut state, device);
            state.progress.step += 1;
            progress.advance(weights(1));
        }
        progress.begin("evaluating", 0);
        let (to_fit, to_code) = FINAL_CHUNKS;
        let fitted = spread(&self.data.training, to_fit);
        let tables = tables(settings.network, &state.parameters, &fitted, device, progress)
            .map_err(|error| self.interrupted(error, &state))?;
        let held_out = spread(&self.data.held_out, to_code);
        let Evaluation { levels, mixture } =
            evaluate(settings.network, &state.parameters, &tables, &held_out, device, progress)
                .map_err(|error| self.interrupted(error, &state))?;
        let host = state.parameters.to_host();
        let network = settings.network.is_light().then(|| {
            let some = spread(&self.data.training, ROUNDING_CHUNKS);
            rounded::network(&host, &evaluate::latents(settings.network, &state.parameters, &some, 0, device))
        });
        let description = json!({
            "version": 0,
            "profile": settings.network.profile,
            "width": settings.network.width,
            "chunk": CHUNK,
            "latents": LATENTS,
            "lambda": settings.lambda,
            "level_costs": &LEVEL_COSTS[..settings.network.levels()],
            "steps": settings.steps,
        });
        Ok(Trained {
            codec: checkpoint::codec(&host, &tables, network.as_deref(), &description),
            levels,
            mixture,
            curve: state.progress.curve,
            sizes: Sizes {
                analysis: count(&host, "analysis."),
                synthesis: count(&host, "synthesis."),
                levels: count(&host, "levels"),
                density: count(&host, density::PREFIX),
            },
            seconds: before + started.elapsed().as_secs_f64(),
        })
    }

    /// Keeps what has been done, and says how to go on.
    fn interrupted<B: Backend>(&self, error: Error, state: &State<B>) -> Error {
        if error.kind != ErrorKind::Interrupted {
            return error;
        }
        if let Err(error) = checkpoint::write(self.checkpoint, self.settings, self.checksum, state) {
            return error;
        }
        let step = state.progress.step;
        let mut error = Error::input(format!("interrupted after {step} steps, which are kept"))
            .file(self.checkpoint)
            .remedy("add --resume to go on");
        error.kind = ErrorKind::Interrupted;
        error
    }

    fn step<A: AutodiffBackend>(&self, state: &mut State<A::InnerBackend>, device: &A::Device) {
        let Settings { batch, steps, rate, .. } = *self.settings;
        let step = state.progress.step;
        let mut rng = self.settings.rng(step as u64);
        let training = &self.data.training;
        let chunks: Vec<Chunk> = (0..batch).map(|_| training[rng.random_range(0..training.len())]).collect();
        let noise: Vec<f32> = (0..batch * LATENTS).map(|_| rng.random_range(-0.5..0.5)).collect();
        let noise = Tensor::from_data(TensorData::new(noise, [batch, LATENTS]), device);
        let tracked = Parameters::<A>::tracked(&state.parameters);
        let gradients = self.loss(&tracked, upload(&chunks, device), noise).backward();
        let rate = |name: &str| if name.starts_with(density::PREFIX) { DENSITY_RATE * rate } else { rate };
        state.adam.update(&mut state.parameters, &tracked, gradients, (step, steps), rate);
    }

    /// The loss of chunks `[n, CHUNK]`, of which as many are of each level, with this noise `[n, LATENTS]` in place of rounding.
    fn loss<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        chunks: Tensor<B, 2>,
        noise: Tensor<B, 2>,
    ) -> Tensor<B, 1> {
        let network = self.settings.network;
        let levels = network.levels();
        let latents = network.analysis(parameters, chunks.clone(), 0..levels) + noise;
        let [n, _] = latents.dims();
        let nats = density::likelihood(parameters, latents.clone()).log().neg();
        let costs: Vec<f32> = LEVEL_COSTS[..levels].iter().map(|&cost| (cost / LN_2) as f32).collect();
        let costs = Tensor::from_data(TensorData::new(costs, [levels, 1]), &chunks.device());
        let rate = (nats.reshape([levels, n / levels * LATENTS]).mean_dim(1) * costs).mean();
        let restored = network.synthesis(parameters, latents, 0..levels);
        (restored - chunks).square().mean() * self.settings.lambda + rate
    }

    fn add_to_curve<B: Backend>(&self, state: &mut State<B>, device: &B::Device) -> Result<()> {
        let Settings { network, lambda, .. } = *self.settings;
        let (to_fit, to_code) = CURVE_CHUNKS;
        let fitted = spread(&self.data.training, to_fit);
        let tables = tables(network, &state.parameters, &fitted, device, self.progress)
            .map_err(|error| self.interrupted(error, state))?;
        let held_out = spread(&self.data.held_out, to_code);
        let Evaluation { levels, mixture } =
            evaluate(network, &state.parameters, &tables, &held_out, device, self.progress)
                .map_err(|error| self.interrupted(error, state))?;
        let loss = |(level, cost): (&Point, f64)| lambda * level.nmse + cost * level.bits_per_weight;
        let loss = levels.iter().zip(LEVEL_COSTS).map(loss).sum::<f64>() / levels.len() as f64;
        if !loss.is_finite() {
            return Err(Error::input(format!(
                "the loss was no number any more after {} steps",
                state.progress.step
            ))
            .remedy("lower --learning-rate"));
        }
        state.progress.curve.push(CurvePoint { step: state.progress.step, loss, point: mixture });
        Ok(())
    }
}

/// At most so many chunks, evenly spread over all.
fn spread(chunks: &[Chunk], most: usize) -> Vec<Chunk> {
    chunks.iter().step_by(chunks.len().div_ceil(most).max(1)).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::commands::train::Profile;
    use crate::progress::Silent;
    use crate::synthetic::Source;

    fn settings(profile: Profile, steps: usize, batch: usize) -> Settings {
        let network = Network { profile, width: 16 };
        Settings {
            network,
            lambda: 100.0,
            steps,
            batch,
            rate: 3e-3,
            seed: 5,
            evaluate_every: steps.div_ceil(3),
        }
    }

    /// Chunks whose neighbours correlate: with 0, independent ones.
    fn chunks(correlation: f32, count: usize, seed: u64) -> Vec<Chunk> {
        let fresh = Source::Gaussian.matrix(count, CHUNK, seed);
        let chunk = |row: &[f32]| {
            let mut chunk = [row[0]; CHUNK];
            for i in 1..CHUNK {
                chunk[i] = correlation * chunk[i - 1] + (1.0 - correlation * correlation).sqrt() * row[i];
            }
            chunk
        };
        fresh.chunks_exact(CHUNK).map(chunk).collect()
    }

    fn data(correlation: f32) -> Data {
        Data { training: chunks(correlation, 4096, 1), held_out: chunks(correlation, 1024, 2) }
    }

    fn run(
        settings: &Settings,
        data: &Data,
        file: &Path,
        resume: bool,
        progress: &dyn Progress,
    ) -> Result<Trained> {
        train(settings, data, Device::Cpu, file, resume, progress)
    }

    /// Interrupts after so many questions whether to.
    struct Impatient(AtomicUsize);

    impl Progress for Impatient {
        fn begin(&self, _: &'static str, _: u64) {}
        fn advance(&self, _: u64) {}
        fn warn(&self, _: &str) {}
        fn check(&self) -> Result<()> {
            let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            left.map(|_| ()).map_err(|_| Error::interrupted())
        }
    }

    #[test]
    fn a_resumed_training_is_as_one_without_a_break() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("codec.checkpoint.safetensors");
        let data = Data { training: chunks(0.5, 256, 1), held_out: chunks(0.5, 64, 2) };
        for (profile, steps) in [(Profile::Compact, 40), (Profile::Paper, 6)] {
            let settings = settings(profile, steps, 16);
            let whole = run(&settings, &data, &file, false, &Silent).unwrap();
            // Each of these stops somewhere else: before a step, or in an evaluation.
            for checks in [9, 13, 20] {
                let error = run(&settings, &data, &file, false, &Impatient(checks.into())).unwrap_err();
                assert_eq!(error.kind, ErrorKind::Interrupted);
                assert!(error.to_string().contains("--resume"), "{error}");
                let resumed = run(&settings, &data, &file, true, &Silent).unwrap();
                assert!(resumed.codec == whole.codec, "{profile:?} differs after {checks} checks");
                assert_eq!(resumed.curve.len(), whole.curve.len());
                assert_eq!(resumed.mixture, whole.mixture);
            }
        }
    }

    #[test]
    fn a_checkpoint_of_another_training_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("codec.checkpoint.safetensors");
        let (mut settings, small) = (
            settings(Profile::Linear, 8, 16),
            Data { training: chunks(0.0, 64, 1), held_out: chunks(0.0, 64, 2) },
        );
        let refused = |settings: &Settings, data: &Data| {
            run(settings, data, &file, true, &Silent).unwrap_err().to_string()
        };
        assert!(refused(&settings, &small).contains("no checkpoint to resume from"));
        run(&settings, &small, &file, false, &Silent).unwrap();
        let other = Data { training: chunks(0.0, 64, 3), held_out: chunks(0.0, 64, 2) };
        assert!(refused(&settings, &other).contains("other weights"));
        settings.lambda = 30.0;
        assert!(refused(&settings, &small).contains("was written with --lambda 100, now it is 30"));
        settings.lambda = 100.0;
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 4]).unwrap();
        assert!(refused(&settings, &small).contains("truncated"));
        std::fs::write(&file, serialized_without_metadata()).unwrap();
        assert!(refused(&settings, &small).contains("is no checkpoint"));
    }

    fn serialized_without_metadata() -> Vec<u8> {
        let none: Vec<(&str, safetensors::tensor::TensorView<'_>)> = Vec::new();
        safetensors::serialize(none, None).unwrap()
    }

    #[test]
    fn a_linear_synthesis_finds_correlations() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("codec.checkpoint.safetensors");
        let data = data(0.9);
        let trained = run(&settings(Profile::Linear, 1500, 128), &data, &file, false, &Silent).unwrap();
        let Point { bits_per_weight, nmse } = trained.mixture;
        // What weights one by one take at this nMSE with ideal entropy coding; Gaussian neighbours that correlate with 0.9 save 1.1 bits.
        let weights: Vec<f32> = data.held_out.as_flattened().to_vec();
        let alone = crate::synthetic::ideal_ecsq_nmse(&weights, bits_per_weight);
        let saved = 0.5 * (alone / nmse).log2();
        assert!(saved > 0.8, "{saved} bits saved: {bits_per_weight} bits at {nmse}");
    }

    #[test]
    fn training_that_diverges_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("codec.checkpoint.safetensors");
        let mut data = data(0.0);
        data.training.iter_mut().for_each(|chunk| chunk[0] = f32::MAX);
        let error = run(&settings(Profile::Compact, 6, 16), &data, &file, false, &Silent).unwrap_err();
        assert!(error.to_string().contains("--learning-rate"), "{error}");
    }
}
