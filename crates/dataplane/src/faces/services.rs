//! `grpc.health.v1` and server reflection (v1 and v1alpha), which are tonic's; mounted by path.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, async_trait};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::connection::Busy;
use crate::dataplane::Dataplane;
use crate::framing::{Reply, refusal};
use crate::{grpc, proto};

/// How soon a watcher hears of a change.
const WATCH_PERIOD: Duration = Duration::from_millis(250);

/// Health of the server (service "" or the inference service) and of a model (service = its name).
struct Health(Arc<Dataplane>);

impl Health {
    fn status(&self, service: &str) -> ServingStatus {
        let ready = match service {
            "" | grpc::SERVICE => self.0.is_ready(),
            model => match self.0.model(model, "") {
                Ok(model) => model.is_ready(),
                Err(_) => return ServingStatus::ServiceUnknown,
            },
        };
        if ready { ServingStatus::Serving } else { ServingStatus::NotServing }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        match self.status(&request.get_ref().service) {
            ServingStatus::ServiceUnknown => {
                Err(Status::not_found("there is no service or model of that name"))
            }
            status => Ok(tonic::Response::new(response(status))),
        }
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let (health, service) = (Self(Arc::clone(&self.0)), request.into_inner().service);
        tokio::spawn(watch_task(health, service, sender));
        Ok(tonic::Response::new(ReceiverStream::new(receiver)))
    }
}

/// Tells the status now, and whenever it has changed, until the client goes.
async fn watch_task(
    health: Health,
    service: String,
    sender: mpsc::Sender<Result<HealthCheckResponse, Status>>,
) {
    let mut told = None;
    loop {
        let status = health.status(&service);
        if told.replace(status) != Some(status) && sender.send(Ok(response(status))).await.is_err() {
            return;
        }
        tokio::select! { () = tokio::time::sleep(WATCH_PERIOD) => {}, () = sender.closed() => return }
    }
}

/// Answers a call to any service but the inference service.
pub async fn call(dataplane: &Arc<Dataplane>, (parts, body): (Parts, Incoming), busy: Busy) -> Reply {
    let request = Request::from_parts(parts, body);
    // Reflection is built for each call: a person's tool asks once, and the tables are not worth keeping.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let known = "the descriptors were compiled with this crate";
    let path = request.uri().path();
    let Ok(response) = if path.starts_with("/grpc.health.v1.Health/") {
        HealthServer::new(Health(Arc::clone(dataplane))).call(request).await
    } else if path.starts_with("/grpc.reflection.v1.") {
        reflection().build_v1().expect(known).call(request).await
    } else if path.starts_with("/grpc.reflection.v1alpha.") {
        reflection().build_v1alpha().expect(known).call(request).await
    } else {
        return refusal(Status::unimplemented(format!("there is no method '{path}'")));
    };
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _until_its_last_frame = &busy;
            frame
        }))
    })
}
