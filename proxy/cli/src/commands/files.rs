//! `sandbox upload` and `sandbox download`: a tar stream through the relay.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use ignore::WalkBuilder;
use postern_proto::v1;
use postern_proto::v1::exec_sandbox_event::Payload as Event;
use postern_proto::v1::exec_sandbox_input::Payload as Input;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use crate::connection::Gateway;
use crate::error::CliError;
use crate::output;

/// Bytes of the tar stream sent in one message; below the gateway's 1 MiB message limit.
const CHUNK: usize = 256 * 1024;

/// Messages between the file system and the connection.
const QUEUE: usize = 4;

/// How much of the remote error text is kept, in bytes.
const ERROR_TEXT: usize = 4096;

/// Copies a local file or folder into a folder of the sandbox.
///
/// # Errors
/// When the file cannot be read, or cannot be unpacked there.
pub async fn upload(
    gateway: &mut Gateway,
    name: &str,
    local: &Path,
    dest: Option<&str>,
    no_git_ignore: bool,
) -> Result<ExitCode, CliError> {
    let local = fs::canonicalize(local)
        .map_err(|source| CliError::local(format!("read {}", local.display()), source))?;
    let script = match dest {
        Some(_) => "mkdir -p -- \"$1\" && exec tar -xf - -C \"$1\"",
        None => "exec tar -xf - -C \"$HOME\"",
    };
    let (inputs, queue) = mpsc::channel(QUEUE);
    let start = start(gateway, name, script, dest.unwrap_or(""));
    let _ = inputs.try_send(v1::ExecSandboxInput { payload: Some(Input::Start(start)) });
    let packed = tokio::task::spawn_blocking(move || pack(&local, no_git_ignore, inputs));
    let action = format!("copy into sandbox {name}");
    let told = run_remote(gateway, queue, &action, None).await;
    let count = packed
        .await
        .map_err(|error| CliError::Cut { action: action.clone(), why: error.to_string() })?;
    // What the far end says explains a broken pipe at this end.
    told?;
    let (files, bytes) = count.map_err(|source| CliError::local(action, source))?;
    output::note(&format!("{files} files, {bytes} bytes are in sandbox {name}"));
    Ok(ExitCode::SUCCESS)
}

/// Copies a file or folder of the sandbox into a local folder.
///
/// # Errors
/// When it cannot be read there, or written here, or would leave the folder.
pub async fn download(
    gateway: &mut Gateway,
    name: &str,
    path: &str,
    dest: Option<&Path>,
) -> Result<ExitCode, CliError> {
    let dest = dest.unwrap_or(Path::new("."));
    fs::create_dir_all(dest)
        .map_err(|source| CliError::local(format!("create {}", dest.display()), source))?;
    let dest = fs::canonicalize(dest)
        .map_err(|source| CliError::local(format!("open {}", dest.display()), source))?;
    let script = "exec tar -cf - -C \"$(dirname -- \"$1\")\" -- \"$(basename -- \"$1\")\"";
    let (inputs, queue) = mpsc::channel(1);
    let start = start(gateway, name, script, path);
    let _ = inputs.try_send(v1::ExecSandboxInput { payload: Some(Input::Start(start)) });
    drop(inputs);
    let (sink, chunks) = mpsc::channel(QUEUE);
    let folder = dest.clone();
    let reader = ChunkReader { chunks, current: Bytes::new() };
    let unpacked = tokio::task::spawn_blocking(move || unpack(&folder, reader));
    let action = format!("copy out of sandbox {name}");
    let told = run_remote(gateway, queue, &action, Some(sink)).await;
    let files = unpacked
        .await
        .map_err(|error| CliError::Cut { action: action.clone(), why: error.to_string() })?;
    told?;
    let files = files.map_err(|source| CliError::local(action, source))?;
    output::note(&format!("{files} files are in {}", dest.display()));
    Ok(ExitCode::SUCCESS)
}

fn start(gateway: &Gateway, name: &str, script: &str, path: &str) -> v1::ExecSandboxRequest {
    v1::ExecSandboxRequest {
        workspace_scope: gateway.scope(),
        sandbox: name.to_owned(),
        command: vec!["sh".into(), "-c".into(), script.into(), "sh".into(), path.into()],
        no_login_shell: true,
        request_id: Uuid::new_v4().to_string(),
        ..v1::ExecSandboxRequest::default()
    }
}

/// Runs the far end; its standard output goes to `sink`, its failure becomes the error.
async fn run_remote(
    gateway: &mut Gateway,
    queue: mpsc::Receiver<v1::ExecSandboxInput>,
    action: &str,
    sink: Option<mpsc::Sender<Bytes>>,
) -> Result<(), CliError> {
    let failed = |status| CliError::refused(format!("cannot {action}"), status);
    let call = gateway.client.exec_sandbox_interactive(ReceiverStream::new(queue));
    let mut events = call.await.map_err(failed)?.into_inner();
    let mut said = Vec::new();
    while let Some(event) = events.message().await.map_err(failed)? {
        match event.payload {
            Some(Event::Stdout(chunk)) => {
                if let Some(sink) = &sink
                    && sink.send(chunk.data).await.is_err()
                {
                    // The unpacking side failed and says why itself.
                    return Ok(());
                }
            }
            Some(Event::Stderr(chunk)) => {
                let room = ERROR_TEXT.saturating_sub(said.len());
                said.extend_from_slice(&chunk.data[..chunk.data.len().min(room)]);
            }
            Some(Event::Exit(exit)) if exit.exit_code == 0 => return Ok(()),
            Some(Event::Exit(exit)) => {
                let said = String::from_utf8_lossy(&said);
                return Err(CliError::Cut {
                    action: action.to_owned(),
                    why: format!("exit code {}: {}", exit.exit_code, said.trim()),
                });
            }
            None => {}
        }
    }
    Err(CliError::Cut { action: action.to_owned(), why: "the gateway sent no exit code".into() })
}

/// Writes a tar stream of a file or folder; answers with files and bytes.
fn pack(
    local: &Path,
    no_git_ignore: bool,
    inputs: mpsc::Sender<v1::ExecSandboxInput>,
) -> io::Result<(u64, u64)> {
    let parent = local.parent().unwrap_or(Path::new("/"));
    let out = io::BufWriter::with_capacity(CHUNK, InputWriter { inputs });
    let mut archive = tar::Builder::new(out);
    archive.follow_symlinks(false);
    let (mut files, mut bytes) = (0, 0);
    let walk = WalkBuilder::new(local)
        .hidden(false)
        .git_global(false)
        .git_ignore(!no_git_ignore)
        .git_exclude(!no_git_ignore)
        .ignore(!no_git_ignore)
        .parents(!no_git_ignore)
        .build();
    for entry in walk {
        let entry = entry.map_err(io::Error::other)?;
        let inside = entry.path().strip_prefix(parent).map_err(io::Error::other)?;
        archive.append_path_with_name(entry.path(), inside)?;
        if entry.file_type().is_some_and(|kind| kind.is_file()) {
            files += 1;
            bytes += entry.metadata().map_err(io::Error::other)?.len();
        }
    }
    archive.into_inner()?.flush()?;
    Ok((files, bytes))
}

/// Unpacks a tar stream; an entry that would leave the folder is an error.
fn unpack(folder: &Path, from: ChunkReader) -> io::Result<u64> {
    let mut archive = tar::Archive::new(from);
    archive.set_preserve_permissions(true);
    let mut files = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.unpack_in(folder)? {
            let path = entry.path()?.display().to_string();
            return Err(io::Error::other(format!("{path:?} would leave the folder; not unpacked")));
        }
        files += u64::from(entry.header().entry_type().is_file());
    }
    Ok(files)
}

/// Sends what is written as standard input of the far end.
struct InputWriter {
    inputs: mpsc::Sender<v1::ExecSandboxInput>,
}

impl Write for InputWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let chunk = Bytes::copy_from_slice(&data[..data.len().min(CHUNK)]);
        let count = chunk.len();
        let message = v1::ExecSandboxInput { payload: Some(Input::Stdin(chunk)) };
        self.inputs.blocking_send(message).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what the far end sends as standard output.
struct ChunkReader {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_and_git_ignored_files_stay_behind() {
        let from = tempfile::tempdir().expect("temporary folder");
        let source = from.path().join("project");
        fs::create_dir_all(source.join(".git")).expect("makes");
        fs::write(source.join(".gitignore"), "secret\n").expect("writes");
        fs::write(source.join("secret"), "no").expect("writes");
        fs::write(source.join("kept"), vec![7_u8; 3 * CHUNK]).expect("writes");
        std::os::unix::fs::symlink("kept", source.join("link")).expect("links");
        let (inputs, mut queue) = mpsc::channel(64);
        let packer = std::thread::spawn(move || pack(&source, false, inputs));
        let (sink, chunks) = mpsc::channel(64);
        while let Some(message) = queue.blocking_recv() {
            let Some(Input::Stdin(chunk)) = message.payload else { panic!("only input") };
            assert!(chunk.len() <= CHUNK);
            sink.blocking_send(chunk).expect("has room");
        }
        drop(sink);
        let (files, bytes) = packer.join().expect("no panic").expect("packs");
        assert_eq!(files, 2);
        assert!(bytes > 3 * CHUNK as u64);
        let to = tempfile::tempdir().expect("temporary folder");
        unpack(to.path(), ChunkReader { chunks, current: Bytes::new() }).expect("unpacks");
        let target = to.path().join("project");
        assert_eq!(fs::read(target.join("kept")).expect("is there").len(), 3 * CHUNK);
        assert!(!target.join("secret").exists());
        assert_eq!(fs::read_link(target.join("link")).expect("is a link"), Path::new("kept"));
    }

    #[test]
    fn an_entry_that_leaves_the_folder_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        let name = b"../escaped";
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_cksum();
        let mut stream = header.as_bytes().to_vec();
        stream.extend_from_slice(b"evil");
        stream.resize(2048, 0);
        let (sink, chunks) = mpsc::channel(1);
        sink.try_send(Bytes::from(stream)).expect("has room");
        drop(sink);
        let folder = tempfile::tempdir().expect("temporary folder");
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).expect("makes");
        unpack(&inner, ChunkReader { chunks, current: Bytes::new() }).expect_err("must refuse");
        assert!(!folder.path().join("escaped").exists());
    }
}
