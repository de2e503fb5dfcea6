// What the pages ask of the server: OpenAI's routes for the chat itself, `/studio` for the rest.

export class ApiError extends Error {}

export async function call(method, path, body) {
  const response = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.status === 401) location.assign("/");
  if (!response.ok) throw new ApiError(await explained(response));
  return response.status === 204 ? null : response.json();
}

// The parts of an answer as they come: {text} or, last, {finish, usage}. One that breaks off is a
// fault, never a short answer. Aborting the signal closes the connection, which stops the engine.
export async function* answer(request, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw new ApiError(await explained(response));
  let finish = null;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message);
    if (chunk.notice) yield { notice: chunk.notice };
    const choice = chunk.choices[0];
    finish = choice?.finish_reason ?? finish;
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (chunk.usage) yield { finish, usage: chunk.usage };
  }
  throw new ApiError("the connection ended before the answer did");
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function explained(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}
