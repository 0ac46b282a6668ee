//! Terminal sizes and modes, as SSH (RFC 4254 section 8) names them and as Linux wants them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::pty::Winsize;
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios,
    tcgetattr, tcsetattr,
};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::isolate::{ModeMessage, SizeMessage, TerminalSize};
use crate::sys;

/// The supervisor's end of a pseudo-terminal. Clones share it.
#[derive(Debug, Clone)]
pub struct Master {
    terminal: Arc<AsyncFd<OwnedFd>>,
}

impl Master {
    /// Takes over a terminal's controlling end.
    ///
    /// # Errors
    /// When it cannot be made non-blocking or registered with the runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { terminal: Arc::new(sys::register(fd)?) })
    }

    /// Changes the size; the foreground process group is told by `SIGWINCH`.
    ///
    /// # Errors
    /// That of `ioctl(2)`.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        sys::set_window_size(self.terminal.get_ref().as_fd(), &window_size(size.into()))
    }

    /// The character that ends input, while the terminal gathers lines; `None` while a program
    /// reads the terminal raw, where it would be data.
    #[must_use]
    pub fn end_of_input(&self) -> Option<u8> {
        let settings = tcgetattr(self.terminal.get_ref()).ok()?;
        settings
            .local_flags
            .contains(LocalFlags::ICANON)
            .then(|| settings.control_chars[SpecialCharacterIndices::VEOF as usize])
    }
}

impl AsyncRead for Master {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.terminal.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|terminal| Ok(nix::unistd::read(terminal.get_ref(), unfilled)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // How Linux says that no process has the terminal open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Master {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.terminal.poll_write_ready(cx))?;
            match guard.try_io(|terminal| Ok(nix::unistd::write(terminal.get_ref(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The size in the kernel's form; what does not fit is cut to the largest that does.
pub(crate) fn window_size(size: SizeMessage) -> Winsize {
    let fit = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    Winsize {
        ws_row: fit(size.rows),
        ws_col: fit(size.columns),
        ws_xpixel: fit(size.width),
        ws_ypixel: fit(size.height),
    }
}

/// Applies the modes that a client asked for. Opcodes that Linux does not have are left out, as
/// RFC 4254 asks; speeds mean nothing on a pseudo-terminal.
pub(crate) fn apply_modes(terminal: &impl AsFd, modes: &[ModeMessage]) -> io::Result<()> {
    let mut settings = tcgetattr(terminal)?;
    for mode in modes {
        apply_mode(&mut settings, mode.opcode, mode.value);
    }
    tcsetattr(terminal, SetArg::TCSANOW, &settings)?;
    Ok(())
}

fn apply_mode(settings: &mut Termios, opcode: u32, value: u32) {
    if let Some(index) = control_character(opcode) {
        // 255 is how SSH writes "disabled"; the kernel writes 0.
        let character = if value == 255 { 0 } else { value as u8 };
        settings.control_chars[index as usize] = character;
        return;
    }
    let on = value != 0;
    if let Some(flag) = input_flag(opcode) {
        settings.input_flags.set(flag, on);
    } else if let Some(flag) = local_flag(opcode) {
        settings.local_flags.set(flag, on);
    } else if let Some(flag) = output_flag(opcode) {
        settings.output_flags.set(flag, on);
    } else {
        apply_control_mode(settings, opcode, on);
    }
}

fn control_character(opcode: u32) -> Option<SpecialCharacterIndices> {
    use SpecialCharacterIndices as Index;
    Some(match opcode {
        1 => Index::VINTR,
        2 => Index::VQUIT,
        3 => Index::VERASE,
        4 => Index::VKILL,
        5 => Index::VEOF,
        6 => Index::VEOL,
        7 => Index::VEOL2,
        8 => Index::VSTART,
        9 => Index::VSTOP,
        10 => Index::VSUSP,
        12 => Index::VREPRINT,
        13 => Index::VWERASE,
        14 => Index::VLNEXT,
        18 => Index::VDISCARD,
        _ => return None,
    })
}

fn input_flag(opcode: u32) -> Option<InputFlags> {
    Some(match opcode {
        30 => InputFlags::IGNPAR,
        31 => InputFlags::PARMRK,
        32 => InputFlags::INPCK,
        33 => InputFlags::ISTRIP,
        34 => InputFlags::INLCR,
        35 => InputFlags::IGNCR,
        36 => InputFlags::ICRNL,
        38 => InputFlags::IXON,
        39 => InputFlags::IXANY,
        40 => InputFlags::IXOFF,
        41 => InputFlags::IMAXBEL,
        42 => InputFlags::IUTF8,
        _ => return None,
    })
}

fn local_flag(opcode: u32) -> Option<LocalFlags> {
    Some(match opcode {
        50 => LocalFlags::ISIG,
        51 => LocalFlags::ICANON,
        53 => LocalFlags::ECHO,
        54 => LocalFlags::ECHOE,
        55 => LocalFlags::ECHOK,
        56 => LocalFlags::ECHONL,
        57 => LocalFlags::NOFLSH,
        58 => LocalFlags::TOSTOP,
        59 => LocalFlags::IEXTEN,
        60 => LocalFlags::ECHOCTL,
        61 => LocalFlags::ECHOKE,
        62 => LocalFlags::PENDIN,
        _ => return None,
    })
}

fn output_flag(opcode: u32) -> Option<OutputFlags> {
    Some(match opcode {
        70 => OutputFlags::OPOST,
        71 => OutputFlags::OLCUC,
        72 => OutputFlags::ONLCR,
        73 => OutputFlags::OCRNL,
        74 => OutputFlags::ONOCR,
        75 => OutputFlags::ONLRET,
        _ => return None,
    })
}

fn apply_control_mode(settings: &mut Termios, opcode: u32, on: bool) {
    match opcode {
        // CS7 and CS8 are values of one field, not flags.
        90 if on => {
            settings.control_flags.remove(ControlFlags::CSIZE);
            settings.control_flags.insert(ControlFlags::CS7);
        }
        91 if on => {
            settings.control_flags.remove(ControlFlags::CSIZE);
            settings.control_flags.insert(ControlFlags::CS8);
        }
        92 => settings.control_flags.set(ControlFlags::PARENB, on),
        93 => settings.control_flags.set(ControlFlags::PARODD, on),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_the_kernels_are_cut() {
        let size = window_size(SizeMessage { columns: 100_000, rows: 24, width: 0, height: 0 });
        assert_eq!((size.ws_col, size.ws_row), (u16::MAX, 24));
    }

    #[test]
    fn modes_reach_the_terminal() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mode = |opcode, value| ModeMessage { opcode, value };
        apply_modes(&pty.slave, &[mode(53, 0), mode(1, 7), mode(3, 255), mode(128, 9600)]).unwrap();
        let settings = tcgetattr(&pty.slave).unwrap();
        assert!(!settings.local_flags.contains(LocalFlags::ECHO));
        assert!(settings.local_flags.contains(LocalFlags::ICANON));
        assert_eq!(settings.control_chars[SpecialCharacterIndices::VINTR as usize], 7);
        assert_eq!(settings.control_chars[SpecialCharacterIndices::VERASE as usize], 0);
    }
}
