"""Secure build of container images: a server that is a workload of the platform, and the client that talks to it.

A job is a repository, a full revision hash, and a Containerfile in it. The server fetches the source and the base images, builds
in a sandbox, signs what came out and pushes it; what it returns is a signed manifest that says what was built of what.

    config        what the contract lets the server do: repositories, registries, names of images, hosts
    containerfile which images a Containerfile is built from, and what is refused of it
    sandbox       where tools run that see what others wrote: no key, no process and no network of the server in sight
    proxy         the one way out of a sandbox: to the hosts that this step may reach
    layout        reads an image that came out of a sandbox, and believes nothing of it
    vault         the signing keys and what was built, encrypted under the secrets of both parties
    signing       simple signing (GPG) and cosign's form
    manifest      what is returned: written, signed, verified
    job           the steps of a job, one after the other
    server        the service: mutual TLS, one job at a time
    client        the other side of it, outside

All but ``client`` runs inside the TEE, in a container: pure modules and Debian's packages, nothing else.
"""
