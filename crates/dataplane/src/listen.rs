//! Ports and sockets: binding them, accepting from them, and the threads that do.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::FutureExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::net::Listener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::connection::{Connection, State, serve as serve_connection};
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::faces::durable::Durable;
use crate::faces::unix;
use crate::gateway::Gateway;

/// Connections that wait in the kernel until there is room.
pub const BACKLOG: i32 = 4096;
/// How long accepting rests when descriptors have run out; the kernel's backlog keeps the clients.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection that is being made may take when the gateway drains.
const HANDSHAKES: Duration = Duration::from_millis(50);
/// A program for the kernel (classic BPF): segments with the SYN flag, at byte 13 of TCP's header, are dropped.
const NO_NEWCOMERS: [SockFilter; 4] = [
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x45, 0, 1, 0x02),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];
/// How long an idle connection may bring one more request when the gateway drains.
const LAST_REQUESTS: Duration = Duration::from_millis(100);
/// Connections of the metrics port, which must answer even when all others are taken.
const METRICS_CONNECTIONS: usize = 64;

/// Where the server can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Addresses {
    /// HTTP, `host:port`.
    pub http: Option<String>,
    /// gRPC, `host:port`.
    pub grpc: Option<String>,
    /// Prometheus text, `host:port`.
    pub metrics: Option<String>,
    /// HTTP and gRPC, the path of a socket.
    pub unix: Option<String>,
}

/// A gateway at work; it stops when dropped.
pub struct Running {
    /// Where it can be reached.
    pub addresses: Addresses,
    gateway: Arc<Gateway>,
    drained: CancellationToken,
    stopped: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Accepts nothing more; connections end when they have answered what they have.
    pub fn drain(&self) {
        if self.drained.is_cancelled() {
            return;
        }
        if let Some(path) = &self.addresses.unix {
            // Somebody may have removed it already.
            drop(fs::remove_file(path));
        }
        self.drained.cancel();
        self.gateway.draining.store(true, Relaxed);
        self.gateway.dataplane.durable.iter().for_each(Durable::drain);
    }

    /// Connections that are still open.
    pub fn open_connections(&self) -> usize {
        self.gateway.open_connections()
    }

    /// Ends the threads, and with them every connection.
    pub fn stop(&mut self) {
        self.drain();
        self.stopped.cancel();
        for thread in self.threads.drain(..) {
            // A thread ends by returning: panics are caught by the tasks they happen in.
            drop(thread.join());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Binds every port, then starts the threads that accept, parse and answer.
pub fn serve(dataplane: &Arc<Dataplane>) -> Result<Running> {
    raise_descriptor_limit();
    let (doors, addresses) = open(&dataplane.config)?;
    let gateway = Arc::new(Gateway::new(Arc::clone(dataplane))?);
    let (drained, stopped) = (CancellationToken::new(), CancellationToken::new());
    let mut running = Running { addresses, gateway, drained, stopped, threads: Vec::new() };
    for index in 0..dataplane.config.threads {
        let start = |error| Error::internal(format!("cannot start a thread: {error}"));
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(start)?;
        if index == 0 {
            dataplane.set_runtime(runtime.handle().clone());
            runtime.spawn(Arc::clone(&running.gateway).sweep_task());
        }
        {
            let _entered = runtime.enter();
            doors.iter().try_for_each(|door| door.attend(&running)).map_err(start)?;
        }
        let stopped = running.stopped.clone();
        let run = move || runtime.block_on(stopped.cancelled());
        let thread = thread::Builder::new().name(format!("lrai-gateway-{index}")).spawn(run);
        running.threads.push(thread.map_err(start)?);
    }
    Ok(running)
}

/// A listening socket and what is behind it. All threads accept from the same socket, whoever is free first; with
/// `SO_REUSEPORT` a connection could wait for a busy thread, and a stranger's server could share the port unnoticed.
struct Door {
    socket: Socket,
    is_unix: bool,
    is_metrics_only: bool,
}

impl Door {
    /// Has the current runtime accept from it.
    fn attend(&self, Running { gateway, drained, .. }: &Running) -> io::Result<()> {
        let (socket, gateway, drained) = (self.socket.try_clone()?, Arc::clone(gateway), drained.clone());
        if self.is_unix {
            let listener = UnixListener::from_std(socket.into())?;
            let end = async move { drained.cancelled().await };
            tokio::spawn(accept_task(gateway, listener, |_| "unix".to_owned(), false, end));
        } else {
            let (listener, name) =
                (TcpListener::from_std(socket.into())?, |from: SocketAddr| from.to_string());
            let door = self.socket.try_clone()?;
            let end = async move {
                drained.cancelled().await;
                // The kernel resets who waits in the queue of a socket that is closed: nobody new may come into it. Where
                // it refuses the filter, a client that comes in this very moment is lost.
                drop(door.attach_filter(&NO_NEWCOMERS));
            };
            tokio::spawn(accept_task(gateway, listener, name, self.is_metrics_only, end));
        }
        Ok(())
    }
}

fn open(config: &Config) -> Result<(Vec<Door>, Addresses)> {
    let (mut doors, mut addresses) = (Vec::new(), Addresses::default());
    let mut port = |name: &str, host: &str, port: u16| {
        let socket = bind_port(host, port).map_err(|why| cannot(name, &at(host, port), &why))?;
        let address = socket.local_addr().ok().and_then(|address| address.as_socket());
        doors.push(Door { socket, is_unix: false, is_metrics_only: name == "metrics" });
        Ok::<_, Error>(address.map(|address| address.to_string()))
    };
    let path = config.host.strip_prefix("unix:");
    if path.is_none() {
        addresses.http = port("http", &config.host, config.http_port)?;
        addresses.grpc = port("grpc", &config.host, config.grpc_port)?;
    }
    if let Some(number) = config.metrics_port {
        let host = if path.is_some() { "127.0.0.1" } else { &config.host };
        addresses.metrics = port("metrics", host, number)?;
    }
    if let Some(path) = path {
        let socket = unix::bind(Path::new(path)).map_err(|why| cannot("unix", path, &why))?;
        doors.push(Door { socket, is_unix: true, is_metrics_only: false });
        addresses.unix = Some(path.to_owned());
    }
    Ok((doors, addresses))
}

fn bind_port(host: &str, port: u16) -> io::Result<Socket> {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let mut found: Vec<SocketAddr> = (name, port).to_socket_addrs()?.collect();
    // `localhost` means both families; most clients try IPv4.
    found.sort_by_key(SocketAddr::is_ipv6);
    let address = *found.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    if let IpAddr::V6(ip) = address.ip() {
        // `::` means every address of this machine, IPv4 included.
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn at(host: &str, port: u16) -> String {
    let is_bare = host.contains(':') && !host.starts_with('[');
    if is_bare { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cold]
fn cannot(name: &str, place: &str, why: &io::Error) -> Error {
    let hint = match why.kind() {
        io::ErrorKind::AddrInUse if name == "unix" => "another server listens there",
        io::ErrorKind::AddrInUse => &format!("choose another --{name}-port, or 0 for any free one"),
        io::ErrorKind::PermissionDenied => "ports below 1024 and folders of others need more rights",
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
        _ => "check --host",
    };
    Error::unavailable(format!("cannot listen on {place} ({name}): {why}, hint: {hint}"))
}

/// Every connection and every replica takes descriptors; the soft limit is for programs that use `select`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // What is not allowed stays as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Accepts until the gateway drains, which turns newcomers away before `end` is over: whoever has connected by then is
/// served, and a client that is about to send its next request has a moment to do so. `name` tells who has come.
async fn accept_task<L>(
    gateway: Arc<Gateway>,
    mut listener: L,
    name: fn(L::Addr) -> String,
    is_metrics_only: bool,
    end: impl Future<Output = ()>,
) where
    L: Listener<Io: Send + Unpin + 'static>,
{
    let slots = if is_metrics_only {
        Arc::new(Semaphore::new(METRICS_CONNECTIONS))
    } else {
        Arc::clone(&gateway.slots)
    };
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    // Nothing more is accepted while all slots are taken.
                    let slot = Arc::clone(&slots).acquire_owned().await;
                    let slot = slot.expect("this semaphore is never closed");
                    let (gateway, state) = (Arc::clone(&gateway), State::default());
                    let connection =
                        Arc::new(Connection { gateway, client: name(address), is_metrics_only, slot, state });
                    connection.gateway.register(&connection);
                    tokio::spawn(serve_connection(connection, stream));
                }
                // A client that has gone already costs nothing; when descriptors or memory have run out, trying again at
                // once would spin.
                Err(why) => match why.kind() {
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {}
                    _ => sleep(DESCRIPTOR_PAUSE).await,
                },
            }
        }
    };
    let drained = end.then(|()| sleep(HANDSHAKES));
    tokio::select! { biased; () = accept => {}, () = drained => {} }
    drop(listener);
    sleep(LAST_REQUESTS).await;
    gateway.each_connection(|connection| connection.dismiss(1));
}
