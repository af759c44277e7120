//! Families of series, made on first use and found again by name.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts,
    Registry,
};

/// Label names and values of one series, in any order (the encoder sorts them).
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// Get-or-create access to counters, gauges and histograms of one registry.
#[derive(Debug)]
pub(super) struct Families {
    registry: Registry,
    counters: Mutex<HashMap<String, IntCounterVec>>,
    gauges: Mutex<HashMap<String, GaugeVec>>,
    histograms: Mutex<HashMap<String, HistogramVec>>,
}

impl Families {
    pub(super) fn new(registry: Registry) -> Self {
        Self { registry, counters: Mutex::default(), gauges: Mutex::default(), histograms: Mutex::default() }
    }

    pub(super) fn counter(
        &self,
        name: &str,
        help: &str,
        labels: Labels<'_>,
    ) -> Result<IntCounter, prometheus::Error> {
        let names = names(labels);
        let family =
            self.family(&self.counters, name, || IntCounterVec::new(Opts::new(name, help), &names))?;
        family.get_metric_with_label_values(&values(labels))
    }

    /// A counter of fractions, without labels.
    pub(super) fn seconds_counter(&self, name: &str, help: &str) -> Result<Counter, prometheus::Error> {
        let counter = Counter::new(name, help)?;
        self.registry.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    pub(super) fn gauge(
        &self,
        name: &str,
        help: &str,
        labels: Labels<'_>,
    ) -> Result<Gauge, prometheus::Error> {
        let names = names(labels);
        let family = self.family(&self.gauges, name, || GaugeVec::new(Opts::new(name, help), &names))?;
        family.get_metric_with_label_values(&values(labels))
    }

    pub(super) fn histogram(
        &self,
        name: &str,
        help: &str,
        labels: Labels<'_>,
        buckets: &[f64],
    ) -> Result<Histogram, prometheus::Error> {
        let names = names(labels);
        let family = self.family(&self.histograms, name, || {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &names)
        })?;
        family.get_metric_with_label_values(&values(labels))
    }

    fn family<F>(
        &self,
        known: &Mutex<HashMap<String, F>>,
        name: &str,
        make: impl FnOnce() -> Result<F, prometheus::Error>,
    ) -> Result<F, prometheus::Error>
    where
        F: Collector + Clone + 'static,
    {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = known.get(name) {
            return Ok(family.clone());
        }
        let family = make()?;
        self.registry.register(Box::new(family.clone()))?;
        known.insert(name.to_owned(), family.clone());
        Ok(family)
    }
}

fn names<'a>(labels: Labels<'a>) -> Vec<&'a str> {
    labels.iter().map(|(name, _)| *name).collect()
}

fn values<'a>(labels: Labels<'a>) -> Vec<&'a str> {
    labels.iter().map(|(_, value)| *value).collect()
}
