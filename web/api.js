// The server's OpenAI-compatible interface.
const base = new URL('.', document.baseURI);

// A failure worth showing: `status` is 0 when the server cannot be reached.
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, base), options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('The server cannot be reached.', 0);
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status} ${response.statusText}`.trim();
  try {
    const body = await response.json();
    message = body.error?.message ?? body.message ?? message;
  } catch { /* no JSON: keep the status line */ }
  if (response.status === 401) message = `${message} (set the API key in the settings)`;
  throw new ApiError(message, response.status);
}

export async function listModels(key, signal) {
  const response = await request('v1/models', { headers: headers(key), signal });
  return (await response.json()).data ?? [];
}

export async function fetchMetrics(key, signal) {
  const response = await request('metrics', { headers: headers(key), signal, cache: 'no-store' });
  return response.text();
}

// Yields the chunks of one streamed chat completion, as they come.
export async function* streamChat(body, key, signal) {
  const response = await request('v1/chat/completions', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  yield* events(response);
}

// Yields the text of a recording piece by piece. `fields`: model and what else the form shall have.
export async function* streamTranscription(file, fields, key, signal) {
  const form = new FormData();
  form.append('file', file, file.name);
  for (const [name, value] of Object.entries({ ...fields, stream: 'true' })) {
    if (value !== undefined && value !== '') form.append(name, value);
  }
  const response = await request('v1/audio/transcriptions', { method: 'POST', headers: headers(key), body: form, signal });
  for await (const event of events(response)) {
    if (event.type === 'transcript.text.delta') yield event.delta;
    if (event.type === 'transcript.text.done') return;
  }
}

// The parsed events of a stream, until [DONE] or until the caller has what it wants.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error.name === 'AbortError') throw error;
        throw new ApiError('The connection broke off before the answer was complete.', 0);
      }
      if (part.done) break;
      buffer += part.value;
      let end;
      while ((end = buffer.search(/\r?\n\r?\n/)) >= 0) {
        const event = buffer.slice(0, end);
        buffer = buffer.slice(end).replace(/^\r?\n\r?\n/, '');
        const data = event.split(/\r?\n/).filter((line) => line.startsWith('data:'))
          .map((line) => line.slice(5).trimStart()).join('\n');
        if (!data) continue;
        if (data.startsWith('[DONE]')) return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message ?? 'The server reported an error.', chunk.error.code ?? 500);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ApiError('The connection broke off before the answer was complete.', 0);
}
