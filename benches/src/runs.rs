//! Where raw data goes, and medians of it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::machine;

/// One run of a bench: a folder with `machine.json`, one line per measurement in `measurements.jsonl`, and one
/// file of latencies per load.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    measurements: File,
}

impl Run {
    /// A new folder below `root`: `<date>-<machine>`, with a number if that is taken.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let plain = format!("{}-{}", machine::date(), machine::name());
        let mut folder = root.join(&plain);
        let mut number = 1;
        while let Err(error) = fs::create_dir(&folder) {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            number += 1;
            folder = root.join(format!("{plain}-{number}"));
        }
        fs::write(folder.join("machine.json"), format!("{:#}\n", machine::describe()))?;
        let measurements = File::create(folder.join("measurements.jsonl"))?;
        Ok(Self { folder, measurements })
    }

    /// Where everything is kept.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps one measurement.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&mut self, measurement: &Value) -> io::Result<()> {
        writeln!(self.measurements, "{measurement}")
    }

    /// Keeps the latencies of one load, in microseconds, one a line.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn keep_latencies(&self, name: &str, latencies_us: &[u64]) -> io::Result<()> {
        let mut file = io::BufWriter::new(File::create(self.folder.join(format!("{name}.us")))?);
        for latency in latencies_us {
            writeln!(file, "{latency}")?;
        }
        file.flush()
    }
}

/// The middle one; of an even number the mean of the two in the middle. 0 of nothing.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([]).to_bits(), 0.0_f64.to_bits());
        assert_eq!(median([3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5_f64.to_bits());
    }
}
