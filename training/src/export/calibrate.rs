//! What values occur at each site: measured by running the fp32 graph over training posts.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use ndarray::ArrayView2;

use super::{
    encoder::{Site, build_observed},
    runtime::Runner,
};
use crate::{config::EncoderConfig, weights::Weights};

/// Rows of values kept by site: enough to rank scales, few enough to multiply hundreds of times.
const SAMPLED_ROWS: usize = 512;

/// The values seen at one site.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Least value by channel.
    pub min: Vec<f32>,
    /// Greatest value by channel.
    pub max: Vec<f32>,
    rows: Vec<f32>,
    capacity: usize,
}

impl Observed {
    /// Nothing seen yet, of `channels` channels; keeps `capacity` rows at most.
    pub fn new(channels: usize, capacity: usize) -> Self {
        Self {
            min: vec![f32::INFINITY; channels],
            max: vec![f32::NEG_INFINITY; channels],
            rows: Vec::new(),
            capacity,
        }
    }

    /// Takes in rows of values; of them, those at `skip, skip + 17, …` are kept, so that all positions
    /// of a text occur in the sample.
    pub fn add(&mut self, values: &[f32], skip: usize) {
        let channels = self.min.len();
        for (r, row) in values.chunks_exact(channels).enumerate() {
            for (c, x) in row.iter().enumerate() {
                self.min[c] = self.min[c].min(*x);
                self.max[c] = self.max[c].max(*x);
            }
            let wanted = r >= skip && (r - skip).is_multiple_of(17);
            if wanted && self.rows.len() < self.capacity * channels {
                self.rows.extend_from_slice(row);
            }
        }
    }

    /// The kept rows, `[rows, channels]`.
    pub fn sample(&self, channels: usize) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape((self.rows.len() / channels, channels), &self.rows)
            .expect("rows are kept whole")
    }
}

/// The values seen at every site.
pub struct Calibration {
    sites: BTreeMap<(usize, Site), Observed>,
}

impl Calibration {
    /// Runs the encoder in fp32 over encoded posts, one at a time so that no padding is seen.
    pub fn run(config: &EncoderConfig, weights: &Weights, posts: &[Vec<u32>]) -> Result<Self> {
        ensure!(!posts.is_empty(), "int8 needs posts to calibrate on: --calibration train.csv");
        let graph = build_observed(config, weights)?.to_bytes();
        let mut runner = Runner::new(&graph, config.pad_token_id as u32)?;
        let keys: Vec<(usize, Site)> = (0..config.layers).flat_map(|i| Site::ALL.map(|s| (i, s))).collect();
        let mut sites: BTreeMap<(usize, Site), Observed> = keys
            .iter()
            .map(|k| {
                let wide = k.1 == Site::Down;
                let channels = if wide { config.intermediate_size } else { config.hidden_size };
                (*k, Observed::new(channels, SAMPLED_ROWS))
            })
            .collect();
        let names: Vec<String> = keys.iter().map(|(i, s)| s.value_name(*i)).collect();
        for (n, post) in posts.iter().enumerate() {
            let values = runner.run(&[post], &names)?;
            for (key, value) in keys.iter().zip(values) {
                if let Some(site) = sites.get_mut(key) {
                    site.add(&value, n % 17);
                }
            }
        }
        Ok(Self { sites })
    }

    /// The values at a site of a layer that [`Calibration::run`] saw.
    pub fn at(&self, layer: usize, site: Site) -> &Observed {
        &self.sites[&(layer, site)]
    }
}
