//! What keeps a response valid, as the body carries it.

use std::any::Any;
use std::sync::Weak;

/// On what an answer of [`ServeFiles`](crate::ServeFiles) stands: a whole file that its path leads to, and
/// nothing else but the request.
///
/// For as long as that [holds](Self::check), the same request, byte for byte, has the same answer, byte
/// for byte but for its `Date`. So a server that keeps the head of the answer can give it again without
/// making it again. It is never stale: the check asks the kernel, as a look-up in the cache of open files does.
///
/// Only a whole file has a basis, and not one that was chosen among side files, stands in for another that is not
/// there, or has changed a moment ago.
///
/// It keeps neither the file nor the service alive. Without them it holds no more.
#[derive(Clone, Debug)]
pub struct Basis {
    /// The entry of the cache of open files that the response was made of.
    pub(crate) entry: Weak<dyn Any + Send + Sync>,
    pub(crate) without_sides: bool,
}
