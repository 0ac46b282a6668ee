//! Parts of the contract suite, for layers of your own.
