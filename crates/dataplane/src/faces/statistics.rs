//! The statistics extension. `success` counts requests, `inference_count` rows, `execution_count` batches.

use std::collections::BTreeMap;

use super::snapshot::{BatchSize, Total};
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::proto::{
    InferBatchStatistics, InferResponseStatistics, InferStatistics, ModelStatistics, ModelStatisticsResponse,
    StatisticDuration,
};

/// The models of that name (empty = all) and version (empty = all).
pub(super) fn read(dataplane: &Dataplane, name: &str, version: &str) -> Result<ModelStatisticsResponse> {
    if !name.is_empty() {
        dataplane.model(name, version)?;
    }
    let matches = |model: &Model| {
        (name.is_empty() || model.spec.name == name) && (version.is_empty() || model.spec.version == version)
    };
    let models = dataplane.models();
    let model_stats = models.iter().filter(|model| matches(model)).map(|model| of_model(model)).collect();
    Ok(ModelStatisticsResponse { model_stats })
}

/// `/stats`.
pub(super) fn json(dataplane: &Dataplane, name: &str, version: &str) -> Result<String> {
    serde_json::to_string(&read(dataplane, name, version)?)
        .map_err(|error| Error::internal(format!("cannot write the statistics: {error}")))
}

fn of_model(model: &Model) -> ModelStatistics {
    let stats = model.stats.snapshot();
    let none = Total::default();
    let cancelled = Total { count: stats.cancelled, ns: 0 };
    // Rows are written to their place before they wait: gathering inputs takes no time of its own.
    let inference_stats = InferStatistics {
        success: duration(stats.success),
        fail: duration(stats.fail),
        queue: duration(stats.queue),
        compute_input: duration(Total { ns: 0, ..stats.compute }),
        compute_infer: duration(stats.compute),
        compute_output: duration(stats.output),
        cache_hit: duration(none),
        cache_miss: duration(none),
    };
    let responses = InferResponseStatistics {
        compute_infer: duration(stats.compute),
        compute_output: duration(stats.output),
        success: duration(stats.success),
        fail: duration(stats.fail),
        empty_response: duration(none),
        cancel: duration(cancelled),
    };
    ModelStatistics {
        name: model.spec.name.clone(),
        version: model.spec.version.clone(),
        last_inference: stats.last_inference_ms,
        inference_count: stats.inference_count,
        execution_count: stats.execution_count,
        inference_stats: Some(inference_stats),
        batch_stats: stats.batch_sizes.iter().map(of_batch_size).collect(),
        memory_usage: Vec::new(),
        response_stats: BTreeMap::from([("0".into(), responses)]),
    }
}

fn of_batch_size(size: &BatchSize) -> InferBatchStatistics {
    InferBatchStatistics {
        batch_size: size.rows.into(),
        compute_input: duration(size.handover),
        compute_infer: duration(size.infer),
        compute_output: duration(Total { ns: 0, ..size.infer }),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "message fields are optional in protocol buffers")]
fn duration(total: Total) -> Option<StatisticDuration> {
    Some(StatisticDuration { count: total.count, ns: total.ns })
}
