//! The port for operators: metrics, health, status, over HTTP/1.1.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | figures in the OpenMetrics text format ([`exposition`]) |
//! | `/health/live` | 200 while the node works: every shard that was started answers |
//! | `/health/ready` | 200 when every group of this node knows its leader; else 503 and the reason |
//! | `/cluster/status` | this node's shards, as `ringraft status --output json` prints them |
//!
//! A few threads of its own accept, one connection each at a time, so that a slow client costs a
//! thread for some seconds and never a shard. They ask the shards as [`scrape`](crate::runtime::scrape)
//! tells. There is no authentication and nothing can be changed through it: keep it on a loopback or
//! management address.

mod exposition;
mod health;
mod http;
mod page;

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tracing::{info, warn};

use self::http::Answer;
use super::StartError;
use crate::config::NodeConfig;
use crate::runtime::process::ProcessFigures;
use crate::runtime::routing::ShardPort;
use crate::runtime::scrape::{ShardReport, Want, ask};
use crate::shard::ShardStatus;

/// Connections served at once; others wait in the kernel's queue.
const WORKERS: usize = 4;
const WORKER_STACK_BYTES: usize = 512 << 10;
/// How long a shard has to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Before accepting again after an error, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the worker threads know of their node.
struct View {
    node: u32,
    client_address: String,
    per_group: bool,
    ports: Vec<Arc<ShardPort>>,
    /// All shards have recovered and accept connections.
    started: AtomicBool,
    /// Seconds since the epoch.
    start_unix_seconds: u64,
    closing: AtomicBool,
    /// By worker: the connection it serves, so that a slow one does not hold up the end of the node.
    serving: [Mutex<Option<TcpStream>>; WORKERS],
}

/// The port, until it is dropped.
pub(super) struct Admin {
    view: Arc<View>,
    address: SocketAddr,
    workers: Vec<JoinHandle<()>>,
}

impl Admin {
    /// Answers on `listener` from now on, while the node is still starting.
    pub fn start(
        listener: TcpListener,
        config: &NodeConfig,
        ports: Vec<Arc<ShardPort>>,
    ) -> Result<Self, StartError> {
        let address = listener.local_addr().map_err(StartError::Kernel)?;
        let view = Arc::new(View {
            node: config.id,
            client_address: config.address().client.clone(),
            per_group: config.metrics.per_group,
            ports,
            started: AtomicBool::new(false),
            start_unix_seconds: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            closing: AtomicBool::new(false),
            serving: [const { Mutex::new(None) }; WORKERS],
        });
        let mut admin = Self { view, address, workers: Vec::new() };
        for i in 0..WORKERS {
            let listener = listener.try_clone().map_err(StartError::Kernel)?;
            let view = admin.view.clone();
            let worker = std::thread::Builder::new()
                .name(format!("node-{}-admin{i}", config.id))
                .stack_size(WORKER_STACK_BYTES)
                .spawn(move || view.work(i, &listener));
            admin.workers.push(worker.map_err(StartError::Kernel)?);
        }
        if !address.ip().is_loopback() {
            warn!(%address, "the admin port has no authentication: keep it in a private network");
        }
        info!(node = config.id, %address, "admin port");
        Ok(admin)
    }

    /// The node accepts clients.
    pub fn started(&self) {
        self.view.started.store(true, Ordering::Release);
    }
}

impl Drop for Admin {
    /// Cuts off whoever is served, and wakes every worker with a connection: accepting cannot be
    /// interrupted otherwise.
    fn drop(&mut self) {
        self.view.closing.store(true, Ordering::Release);
        for worker in 0..WORKERS {
            if let Some(stream) = self.view.serving(worker).as_ref() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        let wakers: Vec<_> = (0..WORKERS)
            .map(|_| TcpStream::connect_timeout(&address, Duration::from_secs(1)))
            .collect();
        let woken = wakers.iter().filter(|waker| waker.is_ok()).count();
        if woken == WORKERS {
            self.workers.drain(..).for_each(|worker| drop(worker.join()));
        }
    }
}

impl View {
    fn work(&self, worker: usize, listener: &TcpListener) {
        loop {
            let accepted = listener.accept().map(|(stream, _)| stream);
            // Shown before `closing` is read, which is set before this is looked at: one of the two
            // threads sees the other.
            *self.serving(worker) = accepted.as_ref().ok().and_then(|s| s.try_clone().ok());
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            match accepted {
                Ok(stream) => http::serve(stream, |path| self.answer(path)),
                Err(_) => std::thread::sleep(ACCEPT_PAUSE),
            }
            *self.serving(worker) = None;
        }
    }

    fn serving(&self, worker: usize) -> MutexGuard<'_, Option<TcpStream>> {
        self.serving[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, path: &str) -> Answer {
        match path {
            "/metrics" => self.metrics(),
            "/health/live" => health::live(&self.state(Want::default())),
            "/health/ready" => health::ready(&self.state(Want::default())),
            "/cluster/status" => self.status(),
            _ => Answer::text(
                404,
                "nothing here; there are /metrics, /health/live, /health/ready, /cluster/status",
            ),
        }
    }

    /// Nobody is asked before all shards run: one that reads its log cannot answer.
    fn state(&self, want: Want) -> health::State {
        let started = self.started.load(Ordering::Acquire);
        let stopping = self.ports.iter().any(|port| port.stop.load(Ordering::Acquire));
        let shards = if started { ask(&self.ports, want, PATIENCE) } else { self.no_reports() };
        health::State { started, stopping, shards }
    }

    fn no_reports(&self) -> Vec<Option<ShardReport>> {
        self.ports.iter().map(|_| None).collect()
    }

    fn metrics(&self) -> Answer {
        let state = self.state(Want { per_group: self.per_group, status: false });
        let process = ProcessFigures::gather();
        match exposition::render(state.shards, self.start_unix_seconds, process) {
            Ok(body) => Answer { status: 200, content_type: exposition::CONTENT_TYPE, body },
            Err(error) => Answer::text(500, format!("cannot encode the figures: {error}")),
        }
    }

    fn status(&self) -> Answer {
        let state = self.state(Want { per_group: false, status: true });
        let missing = state.silent();
        let shards = state.shards.into_iter().flatten().filter_map(|report| report.status);
        let error = match missing.as_slice() {
            [] => None,
            shards => Some(format!("no answer from shards {shards:?}")),
        };
        let (node, address) = (self.node, self.client_address.clone());
        let report = Report { nodes: [Node { node, address, shards: shards.collect(), error }] };
        match serde_json::to_string(&report) {
            Ok(body) => Answer { status: 200, content_type: "application/json", body },
            Err(error) => Answer::text(500, format!("cannot encode the status: {error}")),
        }
    }
}

/// Of the shape that `ringraft status --output json` has, with one node.
#[derive(Serialize)]
struct Report {
    nodes: [Node; 1],
}

#[derive(Serialize)]
struct Node {
    node: u32,
    address: String,
    shards: Vec<ShardStatus>,
    error: Option<String>,
}
