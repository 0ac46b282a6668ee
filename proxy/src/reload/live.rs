//! A service that can be exchanged while it is in use.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use tower::{
    ServiceExt as _,
    util::{BoxCloneSyncService, Oneshot},
};
use tower_service::Service;

/// Sends each request to the service that is current when the request comes. What is under way stays with the
/// service that it began in. Clones are the same; cloning costs one reference count.
pub struct Live<R, T, E> {
    current: Arc<ArcSwap<BoxCloneSyncService<R, T, E>>>,
}

impl<R, T, E> Live<R, T, E> {
    /// Starts with `service`.
    #[must_use]
    pub fn new(service: BoxCloneSyncService<R, T, E>) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(service)) }
    }

    /// Sends requests to `service` from now on.
    pub fn set(&self, service: BoxCloneSyncService<R, T, E>) {
        self.current.store(Arc::new(service));
    }
}

impl<R, T, E> Clone for Live<R, T, E> {
    fn clone(&self) -> Self {
        Self { current: Arc::clone(&self.current) }
    }
}

impl<R, T, E> fmt::Debug for Live<R, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl<R, T, E> Service<R> for Live<R, T, E> {
    type Response = T;
    type Error = E;
    type Future = Oneshot<BoxCloneSyncService<R, T, E>, R>;

    /// Always ready: which service gets the request is not known before it comes. The future waits until that
    /// service is ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let service = BoxCloneSyncService::clone(&self.current.load());
        service.oneshot(request)
    }
}

/// A service that cannot fail, for tests of what is around it.
#[cfg(test)]
pub(super) fn answering<T>(answer: T) -> BoxCloneSyncService<(), T, std::convert::Infallible>
where
    T: Clone + Send + Sync + 'static,
{
    BoxCloneSyncService::new(tower::service_fn(move |()| {
        let answer = answer.clone();
        async move { Ok(answer) }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_began_before_the_exchange_ends_where_it_began() {
        let mut live = Live::new(answering(1));
        let other = live.clone();
        let before = live.call(());
        other.set(answering(2));
        assert_eq!(before.await, Ok(1));
        assert_eq!(live.call(()).await, Ok(2));
    }
}
