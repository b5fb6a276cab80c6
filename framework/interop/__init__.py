"""Files and formats shared with other libraries."""
