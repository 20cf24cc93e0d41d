//! Ports and sockets: binding them, accepting from them, and the threads that do.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::Config;
use crate::connection::{Connection, serve as serve_connection};
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::gateway::Gateway;

const BACKLOG: i32 = 4096;
/// How long accepting rests when descriptors have run out; the kernel's backlog keeps the clients.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);
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
    accepts: watch::Sender<bool>,
    runs: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Accepts nothing more; connections end when they have answered what they have.
    pub fn drain(&self) {
        self.accepts.send_replace(false);
        self.gateway.drain();
    }

    /// Connections that are still open.
    pub fn open_connections(&self) -> usize {
        self.gateway.open_connections()
    }

    /// Ends the threads, and with them every connection.
    pub fn stop(&mut self) {
        self.drain();
        self.runs.send_replace(false);
        for thread in self.threads.drain(..) {
            // A thread ends by returning: panics are caught by the tasks they happen in.
            drop(thread.join());
        }
        if let Some(path) = self.addresses.unix.take() {
            // Somebody may have removed it already.
            drop(fs::remove_file(path));
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
    let (accepts, accepting) = watch::channel(true);
    let (runs, running) = watch::channel(true);
    let mut started = Running { addresses, gateway, accepts, runs, threads: Vec::new() };
    for index in 0..dataplane.config.threads {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::internal(format!("cannot start an event loop: {error}")))?;
        if index == 0 {
            dataplane.set_runtime(runtime.handle().clone());
            runtime.spawn(Arc::clone(&started.gateway).sweep_task());
        }
        for door in &doors {
            let door =
                door.share().map_err(|error| Error::internal(format!("cannot share a port: {error}")))?;
            runtime.spawn(accept_task(Arc::clone(&started.gateway), door, accepting.clone()));
        }
        let mut running = running.clone();
        // An error means that the other side is gone, which ends the thread as well.
        let run = move || runtime.block_on(async { drop(running.wait_for(|running| !running).await) });
        let thread = thread::Builder::new().name(format!("lrai-gateway-{index}")).spawn(run);
        started
            .threads
            .push(thread.map_err(|error| Error::internal(format!("cannot start a thread: {error}")))?);
    }
    Ok(started)
}

/// A listening socket and what is behind it. All threads accept from the same socket, whoever is free first; with
/// `SO_REUSEPORT` a connection could wait for a busy thread, and a stranger's server could share the port unnoticed.
struct Door {
    socket: Socket,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// HTTP and gRPC.
    Tcp,
    /// HTTP and gRPC on a socket file.
    Unix,
    /// Prometheus text only.
    Metrics,
}

impl Door {
    fn share(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, kind: self.kind })
    }
}

fn open(config: &Config) -> Result<(Vec<Door>, Addresses)> {
    let (mut doors, mut addresses) = (Vec::new(), Addresses::default());
    let mut port = |name: &str, host: &str, port: u16, kind: Kind| {
        let socket = bind_port(host, port).map_err(|why| cannot(name, &at(host, port), &why))?;
        let address = socket.local_addr().ok().and_then(|address| address.as_socket());
        doors.push(Door { socket, kind });
        Ok::<_, Error>(address.map(|address| address.to_string()))
    };
    let path = config.host.strip_prefix("unix:");
    if path.is_none() {
        addresses.http = port("http", &config.host, config.http_port, Kind::Tcp)?;
        addresses.grpc = port("grpc", &config.host, config.grpc_port, Kind::Tcp)?;
    }
    if let Some(number) = config.metrics_port {
        let host = if path.is_some() { "127.0.0.1" } else { &config.host };
        addresses.metrics = port("metrics", host, number, Kind::Metrics)?;
    }
    if let Some(path) = path {
        let socket = bind_path(Path::new(path)).map_err(|why| cannot("unix", path, &why))?;
        doors.push(Door { socket, kind: Kind::Unix });
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
    if let IpAddr::V6(ip) = address.ip() {
        // `::` means every address of this machine, IPv4 included.
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Binds a socket file that only owner and group may use; replaces one that nobody listens to.
fn bind_path(path: &Path) -> io::Result<Socket> {
    let address = SockAddr::unix(path)?;
    let socket = || Socket::new(Domain::UNIX, Type::STREAM, None);
    if let Ok(former) = fs::symlink_metadata(path) {
        if !former.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is no socket"));
        }
        if socket()?.connect(&address).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    let socket = socket()?;
    socket.set_nonblocking(true)?;
    socket.bind(&address)?;
    // Nobody can connect before `listen`, so nobody slips in under the wider mode.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn at(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cold]
fn cannot(name: &str, place: &str, why: &io::Error) -> Error {
    let hint = match why.kind() {
        io::ErrorKind::AddrInUse if name == "unix" => "another server listens there".to_owned(),
        io::ErrorKind::AddrInUse => format!("choose another --{name}-port, or 0 for any free one"),
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 and folders of others need more rights".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address".to_owned(),
        _ => "check --host".to_owned(),
    };
    Error::unavailable(format!("cannot listen on {place} ({name}): {why}, hint: {hint}"))
}

/// Every connection and every replica takes descriptors; the soft limit is for programs that use `select`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // What is not allowed stays as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Accepts until the gateway drains: whoever has connected by then is served, and a client that is about to send its
/// next request has a moment to do so.
async fn accept_task(gateway: Arc<Gateway>, door: Door, mut accepting: watch::Receiver<bool>) {
    let drained = async {
        drop(accepting.wait_for(|accepting| !accepting).await);
        // Long enough for the event loop to look at the socket once more.
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    tokio::select! {
        biased;
        Err(error) = accept_all(&gateway, door) => eprintln!("cannot accept connections: {error}"),
        () = drained => {}
    }
    tokio::time::sleep(LAST_REQUESTS).await;
    gateway.end();
}

async fn accept_all(gateway: &Arc<Gateway>, door: Door) -> io::Result<()> {
    let is_metrics_only = door.kind == Kind::Metrics;
    let slots = if is_metrics_only { &Arc::new(Semaphore::new(METRICS_CONNECTIONS)) } else { &gateway.slots };
    let open = |client, slot| Connection::new(Arc::clone(gateway), client, slot, is_metrics_only);
    if door.kind == Kind::Unix {
        let listener = UnixListener::from_std(door.socket.into())?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = open("unix".to_owned(), slot(slots).await);
                    tokio::spawn(serve_connection(connection, stream));
                }
                Err(error) => rest(&error).await,
            }
        }
    }
    let listener = TcpListener::from_std(door.socket.into())?;
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                // A socket that is already closed refuses; serving it finds out.
                drop(stream.set_nodelay(true));
                let connection = open(client.to_string(), slot(slots).await);
                tokio::spawn(serve_connection(connection, stream));
            }
            Err(error) => rest(&error).await,
        }
    }
}

/// Waits while all slots are taken: nothing more is accepted meanwhile.
async fn slot(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(slots).acquire_owned().await.expect("this semaphore is never closed")
}

/// A client that has gone already costs nothing; when descriptors or memory have run out, trying again at once would spin.
async fn rest(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tokio::time::sleep(DESCRIPTOR_PAUSE).await;
    }
}
