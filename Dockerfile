FROM python:3.12-slim-bookworm

# CPU build of torch by default (200 MB); compose.gpu.yaml chooses the CUDA build.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /opt/radnode
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY node node
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt torch \
 && pip install --no-cache-dir -c constraints.txt .
COPY models models
COPY configs configs
RUN radnode model install brain-extraction --config configs/compose.toml \
 && useradd --system --create-home --home-dir /var/lib/radnode radnode \
 && chown radnode:radnode /var/lib/radnode

USER radnode
VOLUME /var/lib/radnode
EXPOSE 11112
ENTRYPOINT ["radnode"]
CMD ["serve", "--config", "/opt/radnode/configs/compose.toml"]
